"""Sends requests when they are due and no more at once than allowed; knows neither what answers nor what it means."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sgl.bench.data import Sample
from sgl.bench.figures import Outcome
from sgl.engine.base.errors import ConfigError, SglError

Send = Callable[[Sample, Outcome], Awaitable[None]]
"""Sends a sample and fills in its outcome but for start and end; an `SglError` is the request's failure."""

Follow = Callable[[Sample, Outcome], Sample | None]
"""What is asked behind an answer; None at the end of a conversation."""


def last(sample: Sample, outcome: Outcome) -> None:
    """Nothing follows."""


@dataclass(frozen=True)
class Traffic:
    """When requests come.

    Args:
        request_rate: per second on average; infinity sends all at once; None is at the times of a trace, or at once.
        arrival: how the gaps between them are distributed, one of `GAPS`.
        burstiness: the shape of gamma-distributed gaps; 1 is Poisson, less comes in bursts.
        max_concurrency: requests under way at once; None for no limit.
        trace_speed: how much faster than its timestamps a trace is sent.
    """

    request_rate: float | None = None
    arrival: str = "poisson"
    burstiness: float = 0.5
    max_concurrency: int | None = None
    seed: int = 1
    trace_speed: float = 1.0

    def check(self) -> None:
        """
        Raises:
            ConfigError: it names the flag.
        """
        if self.request_rate is not None and not self.request_rate > 0:  # also not a number
            message = f"--request-rate must be greater than 0, or inf for all at once, got {self.request_rate:g}."
            raise ConfigError(message, param="--request-rate")
        if self.arrival not in GAPS:
            raise ConfigError(f"--arrival {self.arrival} is unknown; use {', '.join(GAPS)}.", param="--arrival")
        if not 0 < self.burstiness < math.inf:
            raise ConfigError(f"--burstiness must be greater than 0, got {self.burstiness:g}.", param="--burstiness")
        if not 0 < self.trace_speed < math.inf:
            raise ConfigError(f"--trace-speed must be greater than 0, got {self.trace_speed:g}.", param="--trace-speed")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            message = f"--max-concurrency must be at least 1, got {self.max_concurrency}."
            raise ConfigError(message, param="--max-concurrency")


GAPS: Mapping[str, Callable[[random.Random, float, float], float]] = {
    "constant": lambda rng, rate, shape: 1 / rate,
    "poisson": lambda rng, rate, shape: rng.expovariate(rate),
    "gamma": lambda rng, rate, shape: rng.gammavariate(shape, 1 / (rate * shape)),
}
"""Seconds from one request to the next."""


def arrivals(traffic: Traffic) -> Iterator[float]:
    """When each request is due, in seconds after the first."""
    rng, due_s, rate = random.Random(traffic.seed), 0.0, traffic.request_rate
    while True:
        yield due_s
        if rate is not None and not math.isinf(rate):
            due_s += GAPS[traffic.arrival](rng, rate, traffic.burstiness)


def follows_trace(samples: Sequence[Sample], traffic: Traffic) -> bool:
    """Whether requests are sent at their own times: where they have some, and no rate was asked for."""
    return traffic.request_rate is None and samples[0].due_s is not None


def due_times(samples: Sequence[Sample], traffic: Traffic) -> Iterator[float]:
    """When each sample is due, in seconds after the first."""
    if follows_trace(samples, traffic):
        return ((sample.due_s or 0.0) / traffic.trace_speed for sample in samples)
    return arrivals(traffic)


class Run:
    """The outcomes of a run so far; they stay if it is broken off.

    Args:
        on_outcome: called whenever a request is over.

    Attributes:
        interrupted: whether it was broken off.
        num_sent: requests that were begun.
    """

    def __init__(self, on_outcome: Callable[[Outcome], None] = lambda _: None) -> None:
        self.outcomes: list[Outcome] = []
        self.interrupted = False
        self.num_sent = 0
        self._on_outcome = on_outcome
        self._start_s = 0.0

    @property
    def duration_s(self) -> float:
        """From the first request sent until the last one over."""
        return max((outcome.end_s for outcome in self.outcomes), default=self._start_s) - self._start_s

    async def drive(self, samples: Sequence[Sample], traffic: Traffic, send: Send, follow: Follow = last) -> None:
        """Sends all samples and waits for all answers. Cancelled, it drops those under way and keeps the others.

        Times are those of the event loop's clock.

        Args:
            follow: what is asked next in a conversation.
        """
        clock = asyncio.get_running_loop().time
        places: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        if traffic.max_concurrency is not None:
            places = asyncio.Semaphore(traffic.max_concurrency)
        self._start_s = clock()
        async with asyncio.TaskGroup() as group:
            for sample, due_s in zip(samples, due_times(samples, traffic), strict=False):
                wait_s = self._start_s + due_s - clock()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._talk(sample, places, send, follow))

    async def _talk(
        self, sample: Sample, places: contextlib.AbstractAsyncContextManager[object], send: Send, follow: Follow
    ) -> None:
        """A sample and what follows from its answers; one that fails ends the conversation."""
        asked, turn = sample, 0
        while True:
            outcome = await self._one(asked, turn, places, send)
            following = None if outcome.error else follow(asked, outcome)
            if following is None:
                return
            asked, turn = following, turn + 1

    async def _one(
        self, sample: Sample, turn: int, places: contextlib.AbstractAsyncContextManager[object], send: Send
    ) -> Outcome:
        clock = asyncio.get_running_loop().time
        async with places:
            outcome = Outcome(start_s=clock(), turn=turn)
            self.num_sent += 1
            try:
                await send(sample, outcome)
            except SglError as error:
                outcome.error = error.message
            outcome.end_s = clock()
        self.outcomes.append(outcome)
        self._on_outcome(outcome)
        return outcome


async def warm_up_with(samples: Sequence[Sample], send: Send, max_concurrency: int | None = None) -> None:
    """Sends requests that are not measured.

    Raises:
        SglError: one failed, and so would those that are.
    """
    run = Run()
    await run.drive(samples, Traffic(math.inf, max_concurrency=max_concurrency), send)
    error = next((outcome.error for outcome in run.outcomes if outcome.error), "")
    if error:
        raise SglError(f"The warm-up failed: {error}")


def run_until_interrupt(run: Run, main: Coroutine[None, None, None]) -> None:
    """Runs the coroutine that fills in ``run`` in an event loop of its own, until its end or Ctrl-C.

    Raises:
        KeyboardInterrupt: nothing had been measured.
    """
    try:
        asyncio.run(main)
    except KeyboardInterrupt:
        if not run.outcomes:
            raise
        run.interrupted = True
