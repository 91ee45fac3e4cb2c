"""Two runs of one task side by side, item by item; asks nothing and prints nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgl.bench.evals import journal, samples
from sgl.bench.evals.estimates import Estimate, bootstrap, sign_test
from sgl.bench.evals.items import Record
from sgl.engine.base.errors import ConfigError

ACCURACY, MEAN = "accuracy", "mean"


@dataclass(frozen=True)
class Answers:
    """What a journal holds."""

    path: Path
    head: Mapping[str, Any]
    records: Mapping[str, Record]

    @staticmethod
    def read(path: Path) -> Answers:
        """
        Raises:
            ConfigError: it is no journal, or without answers.
        """
        head, records = journal.read(path)
        if not records:
            raise ConfigError(f"{path} has no answers.", param="FILE")
        return Answers(path, head, records)

    @staticmethod
    def read_all(path: Path) -> list[Answers]:
        """Of one task, or a figure each of the tasks of a run of lm-eval.

        Raises:
            ConfigError: there are none.
        """
        if not samples.files(path):
            return [Answers.read(path)]
        found = [Answers(path, head, records) for head, records in samples.tables(path)]
        if not found:
            raise ConfigError(f"{path} has no figure that every item has.", param="FILE")
        return found

    @property
    def task(self) -> str:
        return str(self.head.get("task"))

    @property
    def model(self) -> str:
        return str(self.head.get("model"))


@dataclass(frozen=True)
class Flip:
    """An item that one of the two got right and the other wrong."""

    a: Record
    b: Record


@dataclass(frozen=True)
class Comparison:
    """
    Args:
        a, b: the figure of either: accuracy, nats per token, or the mean of what lm-eval measured.
        difference: B less A, with the interval of a paired bootstrap over items.
        gained, lost: items that B alone got right, and A alone.
        p_value: of McNemar's exact test: how likely such a split is by chance; None without right and wrong.
        num_cut: answers of either that ended at the length limit.
    """

    figure: str
    num_items: int
    a: float
    b: float
    difference: Estimate
    gained: tuple[Flip, ...]
    lost: tuple[Flip, ...]
    p_value: float | None
    num_cut: tuple[int, int]

    @property
    def verdict(self) -> str:
        """Which is better, if that is certain."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "no difference is certain"
        if self.figure == MEAN:
            return "B is higher" if low > 0 else "A is higher"
        return "B is better" if (low > 0) == (self.figure == ACCURACY) else "A is better"


def compare(a: Answers, b: Answers, seed: int = 0) -> Comparison:
    """
    Raises:
        ConfigError: the two answered different questions, or were asked in different ways.
    """
    _check(a, b)
    pairs = [(record, b.records[key]) for key, record in a.records.items()]
    if all(first.is_right is not None and second.is_right is not None for first, second in pairs):
        return _judged(pairs, seed)
    if all("nll" in record.figures for pair in pairs for record in pair):
        return _foreseen(pairs, seed)
    if all("value" in record.figures for pair in pairs for record in pair):
        return _measured(pairs, seed)
    raise ConfigError(f"Answers of {a.head.get('task')} have nothing that can be compared.", param="FILE")


def compare_all(a: Sequence[Answers], b: Sequence[Answers], seed: int = 0) -> dict[str, Comparison]:
    """By task, of those that both have.

    Raises:
        ConfigError: as `compare`, or there are none.
    """
    others = {answers.task: answers for answers in b}
    shared = [(answers, others[answers.task]) for answers in a if answers.task in others]
    if len(a) == len(b) == 1:
        shared = [(a[0], b[0])]
    if not shared:
        told = f"{a[0].path} has {a[0].task}, {b[0].path} has {b[0].task}"
        raise ConfigError(f"These runs have no task in common: {told}.", param="FILE")
    return {first.task: compare(first, second, seed) for first, second in shared}


def to_dict(found: Comparison) -> dict[str, Any]:
    """All of it, for a record."""
    return {**asdict(found), "verdict": found.verdict}


def _check(a: Answers, b: Answers) -> None:
    for name in ("task", "settings"):
        first, second = a.head.get(name), b.head.get(name)
        if first != second and None not in (first, second):  # of its own runs lm-eval keeps no settings beside them
            told = _difference(name, first, second)
            raise ConfigError(f"{a.path} and {b.path} cannot be compared: {told}.", param="FILE")
    only_a, only_b = a.records.keys() - b.records.keys(), b.records.keys() - a.records.keys()
    if only_a or only_b:
        raise ConfigError(
            f"{a.path} and {b.path} cannot be compared: {len(only_a)} questions were answered only in the first and "
            f"{len(only_b)} only in the second; run the same command again where some are missing.",
            param="FILE",
        )


def _difference(name: str, first: Any, second: Any) -> str:
    if isinstance(first, dict) and isinstance(second, dict):
        key = next(key for key in {**first, **second} if first.get(key) != second.get(key))
        return f"{name}.{key} is {first.get(key)!r:.60} in the first and {second.get(key)!r:.60} in the second"
    return f"{name} is {first!r:.60} in the first and {second!r:.60} in the second"


def _judged(pairs: Sequence[tuple[Record, Record]], seed: int) -> Comparison:
    units = [(float(bool(a.is_right)), float(bool(b.is_right)), 1.0) for a, b in pairs]
    gained = tuple(Flip(a, b) for a, b in pairs if b.is_right and not a.is_right)
    lost = tuple(Flip(a, b) for a, b in pairs if a.is_right and not b.is_right)
    return Comparison(
        figure=ACCURACY,
        num_items=len(pairs),
        a=sum(unit[0] for unit in units) / len(units),
        b=sum(unit[1] for unit in units) / len(units),
        difference=bootstrap(units, lambda sums: (sums[..., 1] - sums[..., 0]) / sums[..., 2], seed),
        gained=gained,
        lost=lost,
        p_value=sign_test(len(gained), len(lost)),
        num_cut=_cut(pairs),
    )


def _foreseen(pairs: Sequence[tuple[Record, Record]], seed: int) -> Comparison:
    units = [(a.figures["nll"], b.figures["nll"], a.figures["num_tokens"]) for a, b in pairs]
    total = math.fsum(unit[2] for unit in units)
    return Comparison(
        figure="nats_per_token",
        num_items=len(pairs),
        a=math.fsum(unit[0] for unit in units) / total,
        b=math.fsum(unit[1] for unit in units) / total,
        difference=bootstrap(units, lambda sums: (sums[..., 1] - sums[..., 0]) / sums[..., 2], seed),
        gained=(),
        lost=(),
        p_value=None,
        num_cut=_cut(pairs),
    )


def _measured(pairs: Sequence[tuple[Record, Record]], seed: int) -> Comparison:
    units = [(a.figures["value"], b.figures["value"], 1.0) for a, b in pairs]
    return Comparison(
        figure=MEAN,
        num_items=len(pairs),
        a=math.fsum(unit[0] for unit in units) / len(units),
        b=math.fsum(unit[1] for unit in units) / len(units),
        difference=bootstrap(units, lambda sums: (sums[..., 1] - sums[..., 0]) / sums[..., 2], seed),
        gained=(),
        lost=(),
        p_value=None,
        num_cut=(0, 0),
    )


def _cut(pairs: Sequence[tuple[Record, Record]]) -> tuple[int, int]:
    a, b = (sum(pair[side].finish == "length" for pair in pairs) for side in (0, 1))
    return a, b
