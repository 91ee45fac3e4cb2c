"""What a candidate must reach, as it is written on the command line, and whether it does; measures nothing.

A limit holds only if the whole 95% interval of what was measured is on its right side. So a candidate never passes
because the data were few: with few data the interval is wide, and it fails.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sgl.bench.evals.estimates import Estimate
from sgl.engine.base.errors import ConfigError

DIVERGENCES: Mapping[str, str] = {
    "kl": "mean KL(original || candidate) in nats per token",
    "top1": "share of tokens for which both have the same first choice",
    "ppl": "perplexity; 1.02x is 1.02 times the original's",
}
_CRITERION = re.compile(r"(kl|top1|ppl|eval:[\w.-]+)\s*(<=|>=)\s*(\d*\.?\d+(?:e-?\d+)?)(x?)", re.IGNORECASE)
_FLAG = "--gate"
_SENSE: Mapping[str, str] = {"kl": "<=", "ppl": "<=", "top1": ">=", "eval": ">="}


@dataclass(frozen=True, slots=True)
class Criterion:
    """``metric <= limit`` or ``metric >= limit``; a ratio is to the original."""

    metric: str
    sense: Literal["<=", ">="]
    limit: float
    is_ratio: bool = False

    @property
    def task(self) -> str:
        """The task of an ``eval:`` metric; empty for the others."""
        return self.metric.removeprefix("eval:") if self.metric.startswith("eval:") else ""

    def __str__(self) -> str:
        return f"{self.metric}{self.sense}{self.limit:g}{'x' if self.is_ratio else ''}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A criterion with what was measured."""

    criterion: Criterion
    measured: Estimate

    @property
    def bound(self) -> float | None:
        """The end of the interval that counts; None if there is no interval."""
        return self.measured.high if self.criterion.sense == "<=" else self.measured.low

    @property
    def passed(self) -> bool:
        return self.bound is not None and self._holds(self.bound)

    @property
    def reason(self) -> str:
        """Why it failed: empty if it did not."""
        if self.passed:
            return ""
        if self.bound is None:
            return "too few data for an interval"
        return "not certain: more data would narrow the interval" if self._holds(self.measured.value) else "beyond"

    def _holds(self, value: float) -> bool:
        return value <= self.criterion.limit if self.criterion.sense == "<=" else value >= self.criterion.limit


def parse(text: str) -> tuple[Criterion, ...]:
    """``kl<=0.02, top1>=0.97, ppl<=1.02x, eval:demo-arith>=0.85``.

    Raises:
        ConfigError: it is none.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _CRITERION.fullmatch(part)
        if match is None:
            known = ", ".join(DIVERGENCES)
            message = f"{_FLAG}: {part!r:.80} is no criterion; write {known} or eval:TASK, <= or >=, and a number."
            raise ConfigError(message, param=_FLAG)
        found.append(_criterion(part, *match.groups()))
    if not found:
        raise ConfigError(f"{_FLAG} names no criterion; write for example 'kl<=0.02, top1>=0.97'.", param=_FLAG)
    return tuple(found)


def _criterion(part: str, metric: str, sense: str, limit: str, ratio: str) -> Criterion:
    name = metric.lower()
    kind = name.partition(":")[0]
    if sense != _SENSE[kind]:
        raise ConfigError(f"{_FLAG}: {part!r} holds for bad candidates; {kind} takes {_SENSE[kind]}.", param=_FLAG)
    if ratio and kind != "ppl":
        raise ConfigError(f"{_FLAG}: {part!r}: only ppl is compared as a ratio (ppl<=1.02x).", param=_FLAG)
    if kind in ("top1", "eval") and float(limit) > 1:
        raise ConfigError(f"{_FLAG}: {part!r}: {kind} is a share; write a number up to 1.", param=_FLAG)
    return Criterion(name, "<=" if sense == "<=" else ">=", float(limit), bool(ratio))


def judge(criteria: Sequence[Criterion], measured: Mapping[str, Estimate]) -> tuple[Verdict, ...]:
    """The verdicts; ``measured`` has an estimate for every criterion by its name, a ratio under ``ppl-ratio``."""
    return tuple(Verdict(c, measured[f"{c.metric}-ratio" if c.is_ratio else c.metric]) for c in criteria)
