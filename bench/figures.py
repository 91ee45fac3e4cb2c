"""What happened to every request of a run, and the figures that follow from it; knows no server and no engine."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl.engine.base.errors import ConfigError


@dataclass
class Outcome:
    """One request: when it was sent and what came when (seconds of the driver's clock).

    Args:
        arrivals: (when, tokens that came then); the count is None where the server does not say.
        input_len, output_len, cached_len: as the engine counted them; cached is None where it does not say.
        output_ids: of the answer; empty where only its text is known.
        turn: which question of a conversation, from 0.
        error: why it failed; empty if it did not.
    """

    start_s: float
    end_s: float = 0.0
    arrivals: list[tuple[float, int | None]] = field(default_factory=list)
    input_len: int = 0
    output_len: int = 0
    cached_len: int | None = None
    text: str = ""
    output_ids: Sequence[int] = ()
    turn: int = 0
    error: str = ""

    @property
    def e2e_latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def ttft_s(self) -> float | None:
        """Until the first token; None if no token was seen to come."""
        return self.arrivals[0][0] - self.start_s if self.arrivals else None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None if there is no such token."""
        if self.ttft_s is None or self.output_len < 2:
            return None
        return (self.e2e_latency_s - self.ttft_s) / (self.output_len - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between tokens. Tokens that came at once share their gap; a chunk that was not counted is one token."""
        gaps = []
        for (before_s, _), (now_s, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [(now_s - before_s) / (count or 1)] * (count or 1)
        return gaps


Figures = dict[str, float | int | str | None]

METRICS: Mapping[str, Callable[[Outcome], list[float]]] = {
    "e2e_latency": lambda outcome: [outcome.e2e_latency_s],
    "ttft": lambda outcome: [] if outcome.ttft_s is None else [outcome.ttft_s],
    "tpot": lambda outcome: [] if outcome.tpot_s is None else [outcome.tpot_s],
    "itl": lambda outcome: outcome.itl_s,
}
"""Latencies by name: what one request contributes, in seconds."""

STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "std": statistics.pstdev,
    "p99": lambda values: percentile(values, 99.0),
}

SLO_METRICS = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2e_latency", "e2el": "e2e_latency"}
"""What a service level may bound."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, linear between neighbours; ``values`` are not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, share = math.floor(place), place - math.floor(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * share


def summarize(outcomes: Iterable[Outcome], duration_s: float) -> Figures:
    """Counts, throughputs and latencies of a run, by SGLang's names. Failed requests count as failed only.

    Latencies that no request has (one-token answers have no time per further token) are 0.
    """
    outcomes = list(outcomes)
    done = [outcome for outcome in outcomes if not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    figures: Figures = {
        **throughput(done, duration_s),
        "total_cached_tokens": num_cached(done),
        "concurrency": _rate(sum(outcome.e2e_latency_s for outcome in done), duration_s),
        "failed": len(failed),
        "first_error": failed[0].error if failed else "",
    }
    for metric, of in METRICS.items():
        values = [value for outcome in done for value in of(outcome)]
        figures |= {f"{name}_{metric}_ms": 1e3 * f(values) if values else 0.0 for name, f in STATISTICS.items()}
    return figures


def by_turn(outcomes: Iterable[Outcome]) -> list[dict[str, float | int]]:
    """Times to the first token by question of a conversation; empty where no conversation has a second one."""
    found: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.error:
            found.setdefault(outcome.turn, []).append(outcome)
    if len(found) < 2:
        return []
    turns = []
    for turn, done in sorted(found.items()):
        values = [1e3 * outcome.ttft_s for outcome in done if outcome.ttft_s is not None]
        figures = {f"{name}_ttft_ms": f(values) if values else 0.0 for name, f in STATISTICS.items()}
        turns.append({"turn": turn + 1, "completed": len(done), **figures})
    return turns


def num_cached(done: Sequence[Outcome]) -> int | None:
    """Prompt tokens that were not computed again; None if that was not said of all."""
    counts = [outcome.cached_len for outcome in done if outcome.cached_len is not None]
    return sum(counts) if len(counts) == len(done) else None


def throughput(done: Sequence[Outcome], duration_s: float) -> Figures:
    """Requests and tokens, in all and per second."""
    num_input, num_output = (sum(getattr(outcome, name) for outcome in done) for name in ("input_len", "output_len"))
    return {
        "duration": duration_s,
        "completed": len(done),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _rate(len(done), duration_s),
        "input_throughput": _rate(num_input, duration_s),
        "output_throughput": _rate(num_output, duration_s),
        "total_throughput": _rate(num_input + num_output, duration_s),
    }


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Two of the values, between which the median of all that could be measured lies with this confidence."""

    low: float
    high: float
    confidence: float


def interval_of_median(values: Sequence[float]) -> Interval | None:
    """The narrowest interval of order statistics that has at least 95% confidence; None for a single value.

    Free of any distribution: each of n independent values lies below the median with probability 1/2, so the k-th
    smallest and the k-th greatest miss it with a probability of the binomial distribution (Thompson 1936). Fewer than
    6 values have no such interval: theirs is their range, with the confidence that it has.
    """
    count, ordered = len(values), sorted(values)
    if count < 2:
        return None
    below = list(itertools.accumulate(math.comb(count, i) / 2**count for i in range(count // 2)))
    # Of the k smallest: the interval from the k-th misses the median if fewer than k values lie below it, or above it.
    ranks = [rank for rank in range(count // 2) if 1 - 2 * below[rank] >= CONFIDENCE]
    rank = max(ranks, default=0)
    return Interval(ordered[rank], ordered[-1 - rank], 1 - 2 * below[rank])


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the figures of several runs and their intervals: {"medians", "intervals", "confidence", "repeats"}."""
    names = [name for name, value in runs[0].items() if type(value) in (int, float)]
    series = {name: [run[name] for run in runs] for name in names if all(name in run for run in runs)}
    intervals = {name: interval_of_median(values) for name, values in series.items()}
    return {
        "repeats": len(runs),
        "medians": {name: statistics.median(values) for name, values in series.items()},
        "intervals": {name: [found.low, found.high] for name, found in intervals.items() if found is not None},
        "confidence": next((found.confidence for found in intervals.values() if found is not None), None),
    }


def parse_slo(text: str) -> dict[str, float]:
    """``ttft:500,tpot:50`` as milliseconds by metric.

    Raises:
        ConfigError: an unknown metric, or not a positive number.
    """
    bounds: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition(":")
        try:
            limit_ms = float(value)
        except ValueError:
            limit_ms = 0.0
        if name not in SLO_METRICS or not 0.0 < limit_ms < math.inf:
            message = f"--slo must be like ttft:500,tpot:50 (milliseconds; {', '.join(SLO_METRICS)}), got '{part}'."
            raise ConfigError(message, param="--slo")
        bounds[SLO_METRICS[name]] = limit_ms
    return bounds


def goodput(outcomes: Iterable[Outcome], duration_s: float, slo: Mapping[str, float]) -> dict[str, float | int]:
    """Requests that kept every bound, and how many of them per second."""
    good = sum(1 for outcome in outcomes if not outcome.error and _keeps(outcome, slo))
    return {"good_requests": good, "goodput": _rate(good, duration_s)}


def _keeps(outcome: Outcome, slo: Mapping[str, float]) -> bool:
    return all(1e3 * value <= limit_ms for metric, limit_ms in slo.items() for value in METRICS[metric](outcome))


def _rate(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
