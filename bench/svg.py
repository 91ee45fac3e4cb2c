"""Charts as inline SVG for a page that defines their colours; knows nothing of what they show.

Colours come from the page's classes: ``s0`` to ``s7`` for series, ``grid``, ``axis``. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

COLOURS = 8
"""Series that a reader can tell apart; a caller shows no more in one chart."""

_WIDTH, _HEIGHT = 520, 300
_CHAR_WIDTH = 6.3
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 44


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        label: in the legend.
        points: by x.
        marks: points that are emphasised, with what is said when the pointer is on them.
        colour: 0 to 7, the same in all charts of a page for the same thing.
    """

    label: str
    points: Sequence[Point]
    marks: Sequence[tuple[Point, str]] = ()
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """From the least to the greatest value, with round ticks between; logarithmic ones are positive."""

    label: str
    low: float
    high: float
    is_log: bool = False

    @staticmethod
    def over(label: str, values: Sequence[float], *, from_zero: bool = False) -> Axis:
        """Long enough for the values; logarithmic where they span more than a factor of 50."""
        low, high = min(values), max(values)
        if not from_zero and low > 0 and high / low > 50:
            return Axis(label, low, high, is_log=True)
        low = min(low, 0.0) if from_zero or low < high / 3 else low
        return Axis(label, low, high if high > low else low + 1.0)

    def place(self, value: float) -> float:
        """0 at the least value, 1 at the greatest."""
        if self.is_log:
            span = math.log(self.high / self.low) or 1.0
            return math.log(max(value, self.low) / self.low) / span
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers within."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            return [t for e in range(first, last + 1) for s in steps if self.low <= (t := s * 10.0**e) <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short, without an exponent: 12000 is 12k."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def lines(series: Sequence[Series], x: Axis, y: Axis, title: str) -> str:
    """A chart of lines with a legend; ``title`` is for readers who cannot see it."""
    body = [_grid(x, y)]
    for one in series:
        path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in one.points)
        body.append(f'<polyline class="line s{one.colour}" points="{path}"/>')
        for (a, b), said in one.marks:
            place = f'cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}"'
            body.append(f'<circle class="mark s{one.colour}" {place} r="4"><title>{escape(said)}</title></circle>')
    return legend(series) + _frame(_HEIGHT, title, body)


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours."""
    items = "".join(f'<span><i class="key s{one.colour}"></i>{escape(one.label)}</span>' for one in series)
    return f'<p class="legend">{items}</p>'


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of a part of a whole (0 to 1, and beyond), and what is said beside it."""

    label: str
    share: float
    said: str
    colour: int = 0


def bars(rows: Sequence[Bar], title: str) -> str:
    """Bars against a scale of 0 to 100%; longer ones end at the edge."""
    labels = [bar.label if len(bar.label) <= 40 else f"{bar.label[:39]}…" for bar in rows]
    left = 14 + _CHAR_WIDTH * max(map(len, labels), default=0)
    right = 14 + _CHAR_WIDTH * max((len(bar.said) for bar in rows), default=0)
    row, width = 26, 240
    height = row * len(rows) + 30
    body = []
    for percent in (0, 25, 50, 75, 100):
        at = left + width * percent / 100
        body.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height - 24}"/>')
        body.append(f'<text class="tick" x="{at}" y="{height - 8}" text-anchor="middle">{percent}%</text>')
    for i, (bar, shown) in enumerate(zip(rows, labels, strict=True)):
        top = i * row + 5
        length = width * min(max(bar.share, 0.0), 1.0)
        tip = f"<title>{escape(f'{bar.label}: {bar.said}')}</title>"
        body.append(f'<text class="label" x="{left - 8}" y="{top + 12}" text-anchor="end">{escape(shown)}{tip}</text>')
        body.append(
            f'<rect class="bar s{bar.colour}" x="{left}" y="{top}" width="{length:.1f}" height="16" rx="3">{tip}</rect>'
        )
        body.append(f'<text class="label" x="{left + width + 8}" y="{top + 12}">{escape(bar.said)}</text>')
    return _frame(height, title, body, round(left + width + right), keeps_size=True)


@dataclass(frozen=True)
class Stretch:
    """A part of time in a row of a timeline, and what is said when the pointer is on it."""

    row: int
    begin: float
    end: float
    label: str
    said: str
    colour: int = 0


def timeline(rows: Sequence[str], stretches: Sequence[Stretch], axis: Axis, title: str) -> str:
    """Stretches of time below each other; their labels stand in them where there is room."""
    row, left = 24, round(14 + _CHAR_WIDTH * max(map(len, rows), default=0)) if any(rows) else 8
    width = 810 - left
    floor = row * len(rows) + 4
    body = []
    for value in axis.ticks():
        at = left + width * axis.place(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{floor}"/>')
        body.append(f'<text class="tick" x="{at:.1f}" y="{floor + 15}" text-anchor="middle">{number(value)}</text>')
    middle = left + width / 2
    body.append(f'<text class="name" x="{middle}" y="{floor + 31}" text-anchor="middle">{escape(axis.label)}</text>')
    for i, label in enumerate(rows):
        body.append(f'<text class="label" x="{left - 8}" y="{i * row + 17}" text-anchor="end">{escape(label)}</text>')
    for one in stretches:
        begin, end = left + width * axis.place(one.begin), left + width * axis.place(one.end)
        place = f'x="{begin:.1f}" y="{one.row * row + 3}" width="{max(end - begin, 0.75):.1f}" height="{row - 4}"'
        tip = f"<title>{escape(one.said)}</title>"
        body.append(f'<rect class="bar s{one.colour}" {place} rx="2">{tip}</rect>')
        if end - begin > 7 * len(one.label):
            body.append(f'<text class="within" x="{begin + 4:.1f}" y="{one.row * row + 17}">{escape(one.label)}</text>')
    return _frame(floor + 38, title, body, left + width + 20)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> str:
    floor, parts = _HEIGHT - _BOTTOM, []
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x.ticks():
        at = _x(x, value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    across = f'transform="translate(12 {floor / 2 + _TOP}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="name" {across}>{escape(y.label)}</text>')
    return "".join(parts)


def _frame(height: int, title: str, body: Sequence[str], width: int = _WIDTH, keeps_size: bool = False) -> str:
    """As wide as there is room for; what ``keeps_size`` is never much smaller or larger than it was drawn."""
    told = escape(title, quote=True)
    wide = ' class="wide"' if width > _WIDTH else ""  # its text would be too small where the page is narrow
    if keeps_size:
        wide = f' style="min-width: {0.8 * width:.0f}px; max-width: {1.3 * width:.0f}px"'
    return f'<svg viewBox="0 0 {width} {height}"{wide} role="img" aria-label="{told}">{"".join(body)}</svg>'
