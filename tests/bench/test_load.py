from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable
from dataclasses import replace

import numpy as np
import pytest

from sgl.bench.data import Sample
from sgl.bench.figures import Outcome
from sgl.bench.load import Run, Traffic, arrivals, run_until_interrupt, warm_up_with
from sgl.engine.base.errors import ConfigError, SglError
from tests.bench import virtual_time

MANY = 40_000


def gaps(traffic: Traffic, count: int = MANY) -> np.ndarray:
    return np.diff(list(itertools.islice(arrivals(traffic), count + 1)))


def samples(count: int, output_len: int = 1) -> list[Sample]:
    return [Sample((1,), output_len) for _ in range(count)]


async def takes_a_second(sample: Sample, outcome: Outcome) -> None:
    await asyncio.sleep(1.0)


def test_constant_arrivals_are_evenly_spaced() -> None:
    due = list(itertools.islice(arrivals(Traffic(4.0, "constant")), 9))
    assert due == pytest.approx(np.arange(9) / 4.0)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(Traffic(5.0, "poisson", seed=3))
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):  # the quantile function of the exponential distribution
        assert np.quantile(found, share) == pytest.approx(-math.log(1 - share) / 5.0, rel=0.05)
    in_a_second = np.bincount(np.cumsum(found).astype(int))[:-1]
    assert in_a_second.mean() == pytest.approx(5.0, rel=0.03)
    assert in_a_second.var() == pytest.approx(5.0, rel=0.06)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_shape(burstiness: float) -> None:
    found = gaps(Traffic(5.0, "gamma", burstiness, seed=4))
    reference = np.random.default_rng(0).gamma(burstiness, 1 / (5.0 * burstiness), MANY)
    assert found.mean() == pytest.approx(0.2, rel=0.05)
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)
    shares = (0.5, 0.75, 0.9, 0.99)
    assert np.quantile(found, shares) == pytest.approx(np.quantile(reference, shares), rel=0.08)


@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_arrivals_follow_the_seed(arrival: str) -> None:
    assert (gaps(Traffic(1.0, arrival, seed=1), 50) == gaps(Traffic(1.0, arrival, seed=1), 50)).all()
    assert (gaps(Traffic(1.0, arrival, seed=1), 50) != gaps(Traffic(1.0, arrival, seed=2), 50)).all()


def test_an_infinite_rate_sends_all_at_once() -> None:
    run = Run()
    virtual_time.run(run.drive(samples(50), Traffic(), takes_a_second))
    assert {outcome.start_s for outcome in run.outcomes} == {0.0}
    assert run.duration_s == 1.0


def test_requests_start_when_they_are_due() -> None:
    run, traffic = Run(), Traffic(3.0, "poisson", seed=5)
    virtual_time.run(run.drive(samples(20), traffic, takes_a_second))
    started = sorted(outcome.start_s for outcome in run.outcomes)
    assert started == pytest.approx(list(itertools.islice(arrivals(traffic), 20)))
    assert run.duration_s == pytest.approx(started[-1] + 1.0)


def test_a_trace_is_sent_at_its_times() -> None:
    due = [replace(sample, due_s=due_s) for sample, due_s in zip(samples(3), (0.0, 1.0, 5.0), strict=True)]
    for traffic, starts in (
        (Traffic(), [0.0, 1.0, 5.0]),
        (Traffic(trace_speed=2.0), [0.0, 0.5, 2.5]),
        (Traffic(1.0, "constant"), [0.0, 1.0, 2.0]),
        (Traffic(math.inf), [0.0, 0.0, 0.0]),
    ):
        run = Run()
        virtual_time.run(run.drive(due, traffic, takes_a_second))
        assert sorted(outcome.start_s for outcome in run.outcomes) == starts


def test_a_question_waits_for_the_answer_before_it() -> None:
    asked: list[tuple[float, tuple[int, ...]]] = []

    async def send(sample: Sample, outcome: Outcome) -> None:
        asked.append((outcome.start_s, sample.prompt_ids))
        outcome.output_ids = (9,)
        await asyncio.sleep(1.0)
        if sample.input_ids == (13,):
            raise SglError("no")

    def follow(sample: Sample, outcome: Outcome) -> Sample | None:
        return sample.follow(outcome.output_ids, "")

    talks = [Sample((1,), 1, later=(Sample((2,), 1), Sample((3,), 1))), Sample((13,), 1, later=(Sample((4,), 1),))]
    run = Run()
    virtual_time.run(run.drive(talks, Traffic(), send, follow))
    assert asked == [(0.0, (1,)), (0.0, (13,)), (1.0, (1, 9, 2)), (2.0, (1, 9, 2, 9, 3))]
    assert sorted((outcome.turn, outcome.error) for outcome in run.outcomes) == [(0, ""), (0, "no"), (1, ""), (2, "")]
    assert run.num_sent == 4


def test_no_more_run_at_once_than_allowed() -> None:
    run, running, most = Run(), 0, 0

    async def send(sample: Sample, outcome: Outcome) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(sample.output_len)
        running -= 1

    virtual_time.run(run.drive(samples(10, output_len=2), Traffic(max_concurrency=3), send))
    assert most == 3
    assert run.duration_s == 2 * math.ceil(10 / 3)
    assert all(outcome.e2e_latency_s == 2 for outcome in run.outcomes)  # waiting for a place is not the server's time


def test_a_failure_is_one_outcome_and_stops_nothing() -> None:
    async def send(sample: Sample, outcome: Outcome) -> None:
        await asyncio.sleep(1.0)
        if sample.output_len == 13:
            raise SglError("HTTP status 500: no")

    seen: list[str] = []
    run = Run(lambda outcome: seen.append(outcome.error))
    virtual_time.run(run.drive([*samples(2), *samples(1, 13), *samples(2)], Traffic(), send))
    assert [outcome.error for outcome in run.outcomes] == seen
    assert sorted(seen) == ["", "", "", "", "HTTP status 500: no"]


def test_a_mistake_of_ours_is_not_a_failed_request() -> None:
    async def send(sample: Sample, outcome: Outcome) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        virtual_time.run(Run().drive(samples(1), Traffic(), send))
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_what_was_over_before_an_interrupt_is_kept() -> None:
    async def main(run: Run) -> None:
        driving = asyncio.ensure_future(run.drive(samples(10), Traffic(1.0, "constant"), takes_a_second))
        await asyncio.sleep(4.5)
        driving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driving

    run = Run()
    virtual_time.run(main(run))
    assert [outcome.start_s for outcome in run.outcomes] == [0.0, 1.0, 2.0, 3.0]
    assert run.duration_s == 4.0


@pytest.mark.parametrize("measured", [True, False])
def test_an_interrupt_of_which_something_is_left_is_no_error(measured: bool) -> None:
    run = Run()

    async def main() -> None:
        if measured:
            run.outcomes.append(Outcome(0.0, 1.0))
        raise KeyboardInterrupt

    if measured:
        run_until_interrupt(run, main())
        assert run.interrupted
    else:
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupt(run, main())


def test_a_failed_warm_up_ends_the_run() -> None:
    def send(sample: Sample, outcome: Outcome) -> Awaitable[None]:
        raise SglError("HTTP status 404: no such model")

    with pytest.raises(SglError, match="The warm-up failed: HTTP status 404: no such model"):
        virtual_time.run(warm_up_with(samples(2), send))


@pytest.mark.parametrize(
    ("traffic", "message"),
    [
        (Traffic(0.0), "--request-rate must be greater than 0"),
        (Traffic(math.nan), "--request-rate must be greater than 0"),
        (Traffic(arrival="pareto"), "--arrival pareto is unknown; use constant, poisson, gamma"),
        (Traffic(burstiness=0.0), "--burstiness must be greater than 0"),
        (Traffic(max_concurrency=0), "--max-concurrency must be at least 1"),
        (Traffic(trace_speed=math.inf), "--trace-speed must be greater than 0"),
    ],
)
def test_mistakes_are_named(traffic: Traffic, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        traffic.check()
