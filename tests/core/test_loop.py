from __future__ import annotations

import pytest

from tests.core.simulation import random_run


@pytest.mark.parametrize("block", range(10))
def test_any_schedule_answers_like_the_request_alone(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        random_run(seed)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(200))
def test_soak(block: int) -> None:
    for seed in range(1000 + block * 100, 1100 + block * 100):
        random_run(seed)
