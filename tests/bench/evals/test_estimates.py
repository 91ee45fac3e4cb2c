from __future__ import annotations

import math
import random

import numpy as np
import pytest

from sgl.bench.evals.estimates import bootstrap, mean, share, sign_test


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # statsmodels' proportion_confint(..., method="wilson") with z = 1.96 instead of 1.95996
    [(0, 10, 0.0, 0.27754), (10, 10, 0.72246, 1.0), (8, 10, 0.49016, 0.94332), (391, 400, 0.95779, 0.98811)],
)
def test_a_share_has_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    found = share(right, count)
    assert found.value == right / count
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


def test_a_bootstrap_of_a_mean_is_about_the_normal_interval() -> None:
    rng = random.Random(0)
    values = [rng.gauss(3.0, 2.0) for _ in range(400)]
    found = mean(values)
    middle, error = np.mean(values), np.std(values, ddof=1) / 20
    assert found.value == pytest.approx(middle)
    assert found.low == pytest.approx(middle - 1.96 * error, abs=0.05)
    assert found.high == pytest.approx(middle + 1.96 * error, abs=0.05)
    assert mean(values) == found, "it is seeded"


def test_a_bootstrap_is_paired() -> None:
    rng = random.Random(1)
    units = [(base, base + 0.01, 1.0) for base in (rng.random() for _ in range(50))]
    found = bootstrap(units, lambda sums: (sums[..., 1] - sums[..., 0]) / sums[..., 2])
    assert found.low == pytest.approx(0.01) and found.high == pytest.approx(0.01)


def test_few_units_have_no_interval() -> None:
    assert mean([1.0, 2.0, 3.0, 4.0, 5.0]).low is None


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (1, 9), (12, 3)])
def test_the_sign_test_is_the_binomial_one(gained: int, lost: int) -> None:
    count = gained + lost
    weights = [math.comb(count, k) / 2**count for k in range(count + 1)]
    as_uneven = sum(weight for k, weight in enumerate(weights) if abs(2 * k - count) >= abs(gained - lost))
    assert sign_test(gained, lost) == pytest.approx(as_uneven)
