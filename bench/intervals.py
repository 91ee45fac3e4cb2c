"""How many times as much one series of repeats is as another, and how sure that is; knows no benchmark."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from sgl.bench.figures import CONFIDENCE, interval_of_median

RESAMPLES = 4000
ENOUGH = 6
"""With fewer repeats no interval has 95% confidence."""


class Ratio(NamedTuple):
    """A ratio and its interval: 0 to infinity, with no confidence, where nothing is known."""

    value: float
    low: float = 0.0
    high: float = math.inf
    confidence: float = 0.0

    @property
    def is_certain(self) -> bool:
        """Whether 1, no difference, is outside the interval, and enough stands behind it."""
        return self.confidence >= CONFIDENCE and not self.low <= 1.0 <= self.high

    @property
    def interval(self) -> str:
        """The limits, or ``-``."""
        return f"{self.low:.3f} - {self.high:.3f}" if self.confidence else "-"


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The median of ``a[i] / b[i]``, each pair measured back to back: what slowed both down is not seen.

    The interval is that of `interval_of_median`, free of any distribution; of fewer than 6 pairs it is their range,
    with the confidence that this has.

    Raises:
        ValueError: no pairs.
    """
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    if not ratios:
        raise ValueError("no repeats to compare")
    found = interval_of_median(ratios)
    value = statistics.median(ratios)
    return Ratio(value) if found is None else Ratio(value, found.low, found.high, found.confidence)


def unpaired_ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of the medians of two series that were measured apart, with a bootstrap interval (percentiles).

    Fewer than 6 repeats bound nothing: the interval cannot leave the range of what was seen.

    Raises:
        ValueError: no figures.
    """
    if not a or not b:
        raise ValueError("no repeats to compare")
    value = statistics.median(a) / statistics.median(b)
    if min(len(a), len(b)) < ENOUGH:
        return Ratio(value)
    rng = random.Random(seed)
    ratios = sorted(
        statistics.median(rng.choices(a, k=len(a))) / statistics.median(rng.choices(b, k=len(b)))
        for _ in range(RESAMPLES)
    )
    edge = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Ratio(value, ratios[edge], ratios[-edge - 1], CONFIDENCE)
