"""Regular expressions of the numbers between two bounds, as JSON writes them, without an exponent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

from sgl.engine.base.errors import SglError

_MAX_DIGITS = 15
"""Numbers of as many digits are all different as floating-point numbers, and keep their order."""


@dataclass(frozen=True)
class _Bound:
    """The border of numbers that are not negative; an open one is none of them."""

    value: Decimal
    is_open: bool

    @property
    def whole(self) -> int:
        return int(self.value)

    @property
    def fraction(self) -> str:
        """The digits behind the point, without zeros at the end."""
        _, _, digits = f"{self.value:f}".partition(".")
        return digits.rstrip("0")


def integers_between(schema: Mapping[str, Any]) -> str:
    """
    Raises:
        SglError: 400; there are none.
    """
    least, most = _bounds(schema)
    low = None if least is None else math.floor(least.value) + 1 if least.is_open else math.ceil(least.value)
    high = None if most is None else math.ceil(most.value) - 1 if most.is_open else math.floor(most.value)
    ways = []
    if low is None or low < 0:
        below = _naturals(max(1, -high) if high is not None else 1, None if low is None else -low)
        ways += [f"-{way}" for way in below]
    if high is None or high >= 0:
        ways += _naturals(max(low or 0, 0), high)
    return _either(ways)


def numbers_between(schema: Mapping[str, Any]) -> str:
    """
    Raises:
        SglError: 400; there are none, or a bound has too many digits.
    """
    least, most = _bounds(schema)
    for bound in (least, most):
        if bound is not None and len(f"{abs(bound.value):f}".replace(".", "")) > _MAX_DIGITS:
            raise _refusal("a bound with so many digits")
    zero = _Bound(Decimal(0), False)
    ways = []
    if least is None or least.value < 0:
        low = zero if most is None or most.value > 0 else _Bound(-most.value, most.is_open)
        ways += [f"-{way}" for way in _decimals(low, None if least is None else _Bound(-least.value, least.is_open))]
    if most is None or most.value >= 0:
        ways += _decimals(zero if least is None or least.value < 0 else least, most)
    return _either(ways)


def _bounds(schema: Mapping[str, Any]) -> tuple[_Bound | None, _Bound | None]:
    lows = [(Decimal(str(schema[name])), name) for name in ("exclusiveMinimum", "minimum") if name in schema]
    highs = [(Decimal(str(schema[name])), name) for name in ("exclusiveMaximum", "maximum") if name in schema]
    low = max(lows, key=lambda bound: bound[0], default=None)  # the open one of equals, which comes first
    high = min(highs, key=lambda bound: bound[0], default=None)
    return tuple(bound and _Bound(bound[0], bound[1].startswith("ex")) for bound in (low, high))  # type: ignore[return-value]


def _either(ways: list[str]) -> str:
    if not ways:
        raise _refusal("no number between its bounds")
    return f"(?:{'|'.join(ways)})"


# ---- whole numbers, none negative ------------------------------------------------------------------------------------


def _naturals(low: int, high: int | None) -> list[str]:
    first = len(str(low))
    if high is None:
        return [*_of_length(str(low), "9" * first), f"[1-9]{_digits(first)}[0-9]*"]
    if high < low:
        return []
    last = len(str(high))
    if first == last:
        return _of_length(str(low), str(high))
    ways = _of_length(str(low), "9" * first)
    if last - first > 1:
        ways.append(f"[1-9][0-9]{{{first},{last - 2}}}")
    return ways + _of_length("1" + "0" * (last - 1), str(high))


def _of_length(low: str, high: str) -> list[str]:
    """Between two numbers of as many digits."""
    if not low:
        return [""]
    ways = []
    for begin, end, is_first, is_last in _steps(low[0], high[0]):
        rest_low = low[1:] if is_first else "0" * len(low[1:])
        rest_high = high[1:] if is_last else "9" * len(low[1:])
        whole = rest_low == "0" * len(rest_low) and rest_high == "9" * len(rest_low)
        rests = [_digits(len(rest_low))] if whole else _of_length(rest_low, rest_high)
        ways.append(_span(begin, end) + (rests[0] if len(rests) == 1 else f"(?:{'|'.join(rests)})"))
    return ways


def _steps(low: str, high: str) -> Iterator[tuple[str, str, bool, bool]]:
    """Runs of digits between two, the two by themselves; and whether a run is the first and the last."""
    digits = [str(digit) for digit in range(int(low), int(high) + 1)]
    for (is_first, is_last), run in groupby(digits, lambda digit: (digit == low, digit == high)):
        members = list(run)
        yield members[0], members[-1], is_first, is_last


# ---- numbers with a fraction, none negative --------------------------------------------------------------------------


def _decimals(low: _Bound, high: _Bound | None) -> list[str]:
    is_open = low.is_open or (high is not None and high.is_open)
    wholes = [len(str(bound.whole)) for bound in (low, high) if bound is not None]
    room = _MAX_DIGITS - max(wholes) if is_open else None
    if high is not None and (high.value < low.value or (high.value == low.value and is_open)):
        return []
    if high is not None and high.whole == low.whole:
        return _with_fraction(str(low.whole), _Fraction(low.fraction, high.fraction, low.is_open, high.is_open), room)
    ways = _with_fraction(str(low.whole), _Fraction(low.fraction, None, low.is_open, False), room)
    free = _Fraction(None, None, False, False)
    between = _naturals(low.whole + 1, None if high is None else high.whole - 1)
    if between:
        ways += _with_fraction(_either(between), free, room)
    if high is not None:
        ways += _with_fraction(str(high.whole), _Fraction(None, high.fraction, False, high.is_open), room)
    return ways


@dataclass(frozen=True)
class _Fraction:
    """The digits of two bounds from here on, None once a number is apart from it whatever follows."""

    low: str | None
    high: str | None
    low_is_open: bool
    high_is_open: bool

    def may_end(self) -> bool:
        above = self.low is None or (not self.low and not self.low_is_open)
        return above and (self.high is None or bool(self.high) or not self.high_is_open)

    def after(self, digit: str) -> _Fraction | None:
        low, high = self.low, self.high
        if low is not None:
            own = low[:1] or "0"
            if digit < own:
                return None
            low = None if digit > own else low[1:]
        if high is not None:
            own = high[:1] or "0"
            if digit > own:
                return None
            high = None if digit < own else high[1:]
        return _Fraction(low, high, self.low_is_open, self.high_is_open)


def _with_fraction(whole: str, fraction: _Fraction, room: int | None) -> list[str]:
    ways = [whole] if fraction.may_end() else []
    digits = _fraction(fraction, room)
    return [*ways, rf"{whole}\.{digits}"] if digits else ways


def _fraction(fraction: _Fraction, room: int | None) -> str:
    """At least one digit between the bounds, and ``room`` at most; empty if there is none such."""
    if room == 0:
        return ""
    if fraction.low == "" and not fraction.low_is_open:
        fraction = _Fraction(None, fraction.high, False, fraction.high_is_open)
    some = "+" if room is None else f"{{1,{room}}}"
    if fraction.low is None and fraction.high is None:
        return f"[0-9]{some}"
    if fraction.high == "":
        return "" if fraction.high_is_open or fraction.low is not None else f"0{some}"
    if room is None and fraction.low == "" and fraction.high is None:
        return "0*[1-9][0-9]*"
    ways = []
    after = [(str(digit), fraction.after(str(digit))) for digit in range(10)]
    for rest_fraction, run in groupby((item for item in after if item[1] is not None), lambda item: item[1]):
        members = [digit for digit, _ in run]
        assert rest_fraction is not None
        rest_digits = _fraction(rest_fraction, None if room is None else room - 1)
        tail = f"(?:{rest_digits})?" if rest_digits and rest_fraction.may_end() else rest_digits
        if tail or rest_fraction.may_end():
            ways.append(_span(members[0], members[-1]) + tail)
    return f"(?:{'|'.join(ways)})" if ways else ""


def _span(begin: str, end: str) -> str:
    return begin if begin == end else f"[{begin}-{end}]"


def _digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""


def _refusal(reason: str) -> SglError:
    return SglError(f"json_schema has {reason}.", code="unsupported_schema", param="json_schema")
