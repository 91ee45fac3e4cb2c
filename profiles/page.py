"""One self-contained HTML page for a profile, in the style of the benchmark reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from sgl.bench.report_page import document
from sgl.bench.svg import COLOURS, Axis, Bar, Stretch, bars, timeline
from sgl.profiles.advice import opportunities
from sgl.profiles.analysis import Analysis, Line
from sgl.profiles.tables import Table, difference, facts, tables
from sgl.profiles.tree import Node

_DEPTH = 5  # rows of the timeline: deeper ones are hundreds of slivers
_MOST_LAYERS = 128


def page(found: Analysis, title: str) -> str:
    """The page of one profile."""
    charts = {
        "Phases": _bars(found, [line for line in found.phases if line.total_us], "Time by phase"),
        "Layers": _bars(found, found.layers[:_MOST_LAYERS], "Time by layer"),
    }
    sections = [_opportunities(found), _step(found.middle)]
    for table in tables(found):
        sections.append(_section(table, charts.get(table.title, "")))
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in found.notes)
    return document(title, f'<p class="soft">{escape(facts(found))}</p>{notes}' + "\n".join(sections))


def difference_page(a: Analysis, b: Analysis, title: str) -> str:
    """The page of two profiles side by side."""
    names = f'<p class="soft">A: {escape(a.path)} · B: {escape(b.path)}</p>'
    told = "".join(f'<p class="soft">{name}: {escape(facts(found))}</p>' for name, found in (("A", a), ("B", b)))
    return document(title, names + told + "\n".join(_section(table) for table in difference(a, b)))


def _opportunities(found: Analysis) -> str:
    items = "".join(f"<li>{escape(one.text)}</li>" for one in opportunities(found))
    return f'<h2>Largest opportunities</h2><div class="card"><ol>{items}</ol></div>' if items else ""


def _section(table: Table, chart: str = "") -> str:
    head = "".join(f"<th{_text(i)}>{escape(name)}</th>" for i, name in enumerate(table.columns))
    rows = "".join(
        f"<tr>{''.join(f'<td{_text(i)}>{escape(cell)}</td>' for i, cell in enumerate(row))}</tr>" for row in table.rows
    )
    content = f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    if chart:
        below = 'class="cards" style="grid-template-columns: minmax(0, 1fr)"'  # side by side both would be cut off
        content = f'<div {below}><div class="card">{chart}</div>{content}</div>'
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{content}{note}"


def _text(column: int) -> str:
    return ' class="text"' if column == 0 else ""


def _bars(found: Analysis, lines: Sequence[Line], title: str) -> str:
    rows = [
        Bar(line.name, line.total_us / found.step_us, f"{line.total_us / found.num_steps:.1f} us") for line in lines
    ]
    return bars(rows, title) if rows else ""


def _step(step: Node) -> str:
    """The step of median duration, level by level."""
    begin_us, duration_us = step.event.begin_us, step.event.duration_us
    stretches = list(_stretches(step, begin_us, 0))
    rows = [""] * (1 + max(stretch.row for stretch in stretches))
    chart = timeline(rows, stretches, Axis("microseconds", 0.0, max(duration_us, 1e-3)), "One step")
    return f'<h2>A step of median duration</h2><div class="card">{chart}</div>'


def _stretches(node: Node, begin_us: float, depth: int) -> Iterator[Stretch]:
    event = node.event
    first = event.begin_us - begin_us
    colour = sum(map(ord, event.name)) % COLOURS  # the same name has the same colour on every page
    said = f"{event.name}: {event.duration_us:.1f} us"
    yield Stretch(depth, first, first + event.duration_us, event.name, said, colour)
    if depth + 1 < _DEPTH:
        for child in node.children:
            yield from _stretches(child, begin_us, depth + 1)
