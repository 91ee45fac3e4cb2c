"""What may be concluded from a sample: intervals of 95% for shares, means, ratios and differences; knows no task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
Z = 1.96
RESAMPLES = 10_000
ENOUGH = 6
"""A bootstrap of fewer units cannot leave the range of what was seen and bounds nothing."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, which is None where nothing is known."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_list(self) -> list[float | None]:
        """The interval, for a record."""
        return [self.low, self.high]


def share(right: int, count: int) -> Estimate:
    """A proportion with Wilson's interval, which holds near 0 and 1 too.

    Raises:
        ValueError: nothing was counted.
    """
    if count < 1:
        raise ValueError("a share of nothing")
    value = right / count
    middle = (value + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(value * (1 - value) / count + Z * Z / (4 * count * count))
    return Estimate(value, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(units: Sequence[Sequence[float]], figure: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Estimate:
    """A figure of sums over independent units (documents, items), each drawn again and again as a whole.

    Args:
        units: the addends of every unit; two models' figures of the same unit stay together, and so are paired.
        figure: from sums ``[..., addends]`` to figures ``[...]``.
    """
    import numpy as np

    values = np.asarray(units, dtype=np.float64)
    value = float(figure(values.sum(0)))
    if len(values) < ENOUGH:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(figure(counts @ values), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of independent values."""
    return bootstrap([(value, 1.0) for value in values], lambda sums: sums[..., 0] / sums[..., 1], seed)


def sign_test(gained: int, lost: int) -> float:
    """How likely a split at least as uneven would be by chance: the exact test of McNemar, two-sided."""
    count, less = gained + lost, min(gained, lost)
    tail = sum(math.comb(count, k) for k in range(less + 1))
    return min(1.0, 2 * tail / 2**count) if count else 1.0
