from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from sgl.bench.figures import (
    STATISTICS,
    Outcome,
    goodput,
    interval_of_median,
    medians,
    num_cached,
    parse_slo,
    percentile,
    summarize,
)
from sgl.engine.base.errors import ConfigError


def outcome(start_s: float, *arrivals: tuple[float, int | None], output_len: int, **fields: object) -> Outcome:
    """An answer that ends with its last token."""
    end_s = arrivals[-1][0] if arrivals else start_s
    return Outcome(start_s, end_s, list(arrivals), input_len=10, output_len=output_len, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_statistics_are_numpys(count: int) -> None:
    rng = random.Random(count)
    values = [rng.lognormvariate(0, 1) for _ in range(count)]
    for percent in (0, 1, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    expected = {"mean": np.mean, "median": np.median, "std": np.std, "p99": lambda x: np.percentile(x, 99)}
    assert {name: f(values) for name, f in STATISTICS.items()} == {
        name: pytest.approx(f(values)) for name, f in expected.items()
    }


def test_latencies_of_one_request() -> None:
    one = outcome(1.0, (1.5, 1), (1.7, 1), (2.3, 3), output_len=5)
    assert (one.e2e_latency_s, one.ttft_s) == (pytest.approx(1.3), 0.5)
    assert one.tpot_s == pytest.approx(0.8 / 4)
    assert one.itl_s == pytest.approx([0.2, 0.2, 0.2, 0.2])


def test_a_chunk_that_was_not_counted_is_one_token() -> None:
    assert outcome(0.0, (1.0, None), (1.5, None), (3.0, None), output_len=9).itl_s == pytest.approx([0.5, 1.5])


def test_one_token_has_no_time_per_further_token() -> None:
    one = outcome(0.0, (1.0, 1), output_len=1)
    assert (one.ttft_s, one.tpot_s, one.itl_s) == (1.0, None, [])
    assert outcome(0.0, output_len=3).ttft_s is None


def test_summary_of_a_run() -> None:
    outcomes = [
        outcome(0.0, (1.0, 1), (2.0, 1), output_len=2, cached_len=4),
        outcome(1.0, (3.0, 1), (3.5, 1), (5.0, 2), output_len=4, cached_len=0),
        Outcome(2.0, 2.1, error="HTTP status 500: no"),
        Outcome(2.0, 2.2, error="later"),
    ]
    figures = summarize(outcomes, 5.0)
    assert (figures["completed"], figures["failed"], figures["first_error"]) == (2, 2, "HTTP status 500: no")
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (20, 6)
    assert (figures["request_throughput"], figures["output_throughput"]) == (0.4, pytest.approx(1.2))
    assert (figures["input_throughput"], figures["total_throughput"]) == (4.0, pytest.approx(5.2))
    assert figures["concurrency"] == pytest.approx((2.0 + 4.0) / 5.0)
    assert figures["total_cached_tokens"] == 4
    expected = {"e2e_latency": [2.0, 4.0], "ttft": [1.0, 2.0], "tpot": [1.0, 2.0 / 3], "itl": [1.0, 0.5, 0.75, 0.75]}
    for metric, seconds in expected.items():
        assert figures[f"mean_{metric}_ms"] == pytest.approx(1e3 * np.mean(seconds))
        assert figures[f"median_{metric}_ms"] == pytest.approx(1e3 * np.median(seconds))
        assert figures[f"std_{metric}_ms"] == pytest.approx(1e3 * np.std(seconds))
        assert figures[f"p99_{metric}_ms"] == pytest.approx(1e3 * np.percentile(seconds, 99))


def test_nothing_measured_is_zero_not_an_error() -> None:
    figures = summarize([], 0.0)
    assert figures["completed"] == 0 and figures["request_throughput"] == 0.0 and figures["p99_ttft_ms"] == 0.0


def test_cached_tokens_are_unknown_if_one_answer_does_not_say() -> None:
    assert num_cached([Outcome(0.0, cached_len=3), Outcome(0.0)]) is None
    assert num_cached([Outcome(0.0, cached_len=3), Outcome(0.0, cached_len=0)]) == 3


def confidence_of(count: int, rank: int) -> float:
    """How often the median lies between the rank-th smallest and greatest of values that are below it or above it."""
    draws = list(itertools.product((False, True), repeat=count))
    return sum(rank < sum(draw) and rank < count - sum(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("count", range(2, 15))
def test_the_interval_is_the_narrowest_with_enough_confidence(count: int) -> None:
    values = random.Random(count).sample(range(1000), count)
    found = interval_of_median(values)
    assert found is not None
    good = [rank for rank in range(count // 2) if confidence_of(count, rank) >= 0.95]
    rank = max(good, default=0)
    assert (found.low, found.high) == (sorted(values)[rank], sorted(values, reverse=True)[rank])
    assert found.confidence == pytest.approx(confidence_of(count, rank))
    assert bool(good) == (count >= 6) == (found.confidence >= 0.95)


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    rng, held = random.Random(7), 0
    for _ in range(4000):
        found = interval_of_median([rng.expovariate(math.log(2)) for _ in range(9)])  # whose median is 1
        assert found is not None
        held += found.low <= 1.0 <= found.high
    assert held / 4000 == pytest.approx(confidence_of(9, 1), abs=0.01)


def test_medians_of_runs() -> None:
    runs = [{"x": x, "y": 1, "name": "a", "ok": True} for x in (3.0, 1.0, 2.0)]
    assert medians(runs) == {
        "repeats": 3,
        "medians": {"x": 2.0, "y": 1},
        "intervals": {"x": [1.0, 3.0], "y": [1, 1]},
        "confidence": pytest.approx(0.75),
    }
    assert medians(runs[:1])["intervals"] == {} and interval_of_median([1.0]) is None


def test_goodput_counts_requests_that_keep_every_bound() -> None:
    fast = outcome(0.0, (0.1, 1), (0.2, 1), output_len=2)
    late = outcome(0.0, (0.6, 1), (0.7, 1), output_len=2)
    slow = outcome(0.0, (0.1, 1), (0.9, 1), output_len=2)
    failed = Outcome(0.0, 0.1, error="no")
    slo = parse_slo("ttft:500,tpot:150")
    assert goodput([fast, late, slow, failed], 2.0, slo) == {"good_requests": 1, "goodput": 0.5}
    assert goodput([fast, late, slow, failed], 2.0, {"ttft": 500.0})["good_requests"] == 2


def test_service_levels() -> None:
    assert parse_slo("ttft:500, tpot:50.5") == {"ttft": 500.0, "tpot": 50.5}
    assert parse_slo("e2e:1000") == parse_slo("e2el:1000") == {"e2e_latency": 1000.0}
    assert parse_slo("") == {}


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:x", "ttft:-1", "speed:3", f"ttft:{math.inf}", "ttft:nan"])
def test_wrong_service_levels_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo must be like ttft:500,tpot:50"):
        parse_slo(text)
