"""Two recordings or replays of the same requests side by side: what was answered, and how fast. Sends nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgl.bench.intervals import Ratio, paired_ratio
from sgl.engine.api.exchange import Answer, Choice, Exchange
from sgl.engine.base.errors import ConfigError

_SHOWN_CHARS = 40
_SHOWN_IDS = 6


@dataclass(frozen=True)
class Difference:
    """Where two answers to one request part.

    Args:
        what: ``status``, or the field of the answer.
        position: of the first character or token that differs.
        a, b: what stands there.
    """

    rid: str
    is_greedy: bool
    choice: int
    what: str
    position: int
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """
    Args:
        num_hidden: pairs whose answers were not compared, since one is to another prompt than was recorded.
        only_a, only_b: requests that have no partner.
        ratios: by latency, B's over A's, of pairs that were answered both times.
    """

    num_pairs: int
    num_compared: int
    num_greedy: int
    num_hidden: int
    only_a: int
    only_b: int
    differences: tuple[Difference, ...]
    ratios: Mapping[str, Ratio]

    @property
    def num_identical(self) -> int:
        return self.num_compared - len(self.differences)

    @property
    def num_greedy_different(self) -> int:
        return sum(difference.is_greedy for difference in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"num_identical": self.num_identical, "num_greedy_different": self.num_greedy_different}
        ratios = {name: ratio._asdict() for name, ratio in self.ratios.items()}
        return {**asdict(self), **counts, "ratios": ratios}


LATENCIES: Mapping[str, Callable[[Answer], float | None]] = {
    "end to end": lambda answer: answer.e2e_s,
    "first token": lambda answer: answer.first_s,
    "per further token": lambda answer: answer.tpot_s,
}
"""By name; a stream has all three."""


def compare(a: Sequence[Exchange], b: Sequence[Exchange]) -> Comparison:
    """
    Raises:
        ConfigError: they have no request in common.
    """
    pairs = _pairs(a, b)
    if not pairs:
        raise ConfigError("A and B have no request in common.", param="B")
    open_pairs = [(old, new) for old, new in pairs if not (old.hidden or new.hidden)]
    found = (_difference(old, new) for old, new in open_pairs)
    good = [(old.answer, new.answer) for old, new in pairs if old.answer.is_good and new.answer.is_good]
    ratios = {}
    for name, figure in LATENCIES.items():
        values = [(before, now) for x, y in good if (before := figure(x)) and (now := figure(y))]
        if values:
            ratios[name] = paired_ratio([now for _, now in values], [before for before, _ in values])
    return Comparison(
        num_pairs=len(pairs),
        num_compared=len(open_pairs),
        num_greedy=sum(old.is_greedy for old, _ in open_pairs),
        num_hidden=len(pairs) - len(open_pairs),
        only_a=len(a) - len(pairs),
        only_b=len(b) - len(pairs),
        differences=tuple(difference for difference in found if difference is not None),
        ratios=ratios,
    )


def _pairs(a: Sequence[Exchange], b: Sequence[Exchange]) -> list[tuple[Exchange, Exchange]]:
    """By request id; of several with one id the first with the first."""
    known = {(exchange.path, *key): exchange for key, exchange in _numbered(b)}
    keyed = ((exchange, known.get((exchange.path, *key))) for key, exchange in _numbered(a))
    return [(old, new) for old, new in keyed if new is not None]


def _numbered(exchanges: Sequence[Exchange]) -> list[tuple[tuple[str, int], Exchange]]:
    seen: Counter[str] = Counter()
    numbered = []
    for exchange in sorted(exchanges, key=lambda exchange: exchange.at_s):
        numbered.append(((exchange.rid, seen[exchange.rid]), exchange))
        seen[exchange.rid] += 1
    return numbered


def _difference(old: Exchange, new: Exchange) -> Difference | None:
    x, y = old.answer, new.answer
    parted: tuple[int, str, int, str, str] | None = None
    if (x.status, x.is_good) != (y.status, y.is_good):
        parted = 0, "status", 0, _status(x), _status(y)
    elif x.is_good and len(x.choices) != len(y.choices):
        parted = 0, "choices", 0, str(len(x.choices)), str(len(y.choices))
    elif x.is_good:
        places = enumerate(zip(x.choices, y.choices, strict=True))
        parted = next(((index, *found) for index, (c, d) in places if (found := _parted(c, d))), None)
    return Difference(old.rid, old.is_greedy, *parted) if parted else None


def _status(answer: Answer) -> str:
    return f"{answer.status or 'no answer'} {answer.error}".strip()


def _parted(old: Choice, new: Choice) -> tuple[str, int, str, str] | None:
    for name in ("token_ids", "reasoning", "text", "calls", "finish"):
        x, y = getattr(old, name), getattr(new, name)
        if x != y:
            alike = zip(x, y, strict=False)
            position = next((i for i, (c, d) in enumerate(alike) if c != d), min(len(x), len(y)))
            return name, position, _shown(x, position), _shown(y, position)
    return None


def _shown(value: str | list[int], position: int) -> str:
    if isinstance(value, str):
        return repr(value[position : position + _SHOWN_CHARS]) if position < len(value) else "the end"
    return str(value[position : position + _SHOWN_IDS]) if position < len(value) else "the end"
