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


@dataclass(frozen=True)
class Traffic:
    """When requests come.

    Args:
        request_rate: per second on average; infinity sends all at once.
        arrival: how the gaps between them are distributed, one of `GAPS`.
        burstiness: the shape of gamma-distributed gaps; 1 is Poisson, less comes in bursts.
        max_concurrency: requests under way at once; None for no limit.
    """

    request_rate: float = math.inf
    arrival: str = "poisson"
    burstiness: float = 0.5
    max_concurrency: int | None = None
    seed: int = 1

    def check(self) -> None:
        """
        Raises:
            ConfigError: it names the flag.
        """
        if not self.request_rate > 0:  # also not a number
            message = f"--request-rate must be greater than 0, or inf for all at once, got {self.request_rate:g}."
            raise ConfigError(message, param="--request-rate")
        if self.arrival not in GAPS:
            raise ConfigError(f"--arrival {self.arrival} is unknown; use {', '.join(GAPS)}.", param="--arrival")
        if not 0 < self.burstiness < math.inf:
            raise ConfigError(f"--burstiness must be greater than 0, got {self.burstiness:g}.", param="--burstiness")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            message = f"--max-concurrency must be at least 1, got {self.max_concurrency}."
            raise ConfigError(message, param="--max-concurrency")


GAPS: Mapping[str, Callable[[random.Random, Traffic], float]] = {
    "constant": lambda rng, traffic: 1 / traffic.request_rate,
    "poisson": lambda rng, traffic: rng.expovariate(traffic.request_rate),
    "gamma": lambda rng, traffic: rng.gammavariate(traffic.burstiness, 1 / (traffic.request_rate * traffic.burstiness)),
}
"""Seconds from one request to the next."""


def arrivals(traffic: Traffic) -> Iterator[float]:
    """When each request is due, in seconds after the first."""
    rng, due_s = random.Random(traffic.seed), 0.0
    while True:
        yield due_s
        due_s += 0.0 if math.isinf(traffic.request_rate) else GAPS[traffic.arrival](rng, traffic)


class Run:
    """The outcomes of a run so far; they stay if it is broken off.

    Args:
        on_outcome: called whenever a request is over.

    Attributes:
        interrupted: whether it was broken off.
    """

    def __init__(self, on_outcome: Callable[[Outcome], None] = lambda _: None) -> None:
        self.outcomes: list[Outcome] = []
        self.interrupted = False
        self._on_outcome = on_outcome
        self._start_s = 0.0

    @property
    def duration_s(self) -> float:
        """From the first request sent until the last one over."""
        return max((outcome.end_s for outcome in self.outcomes), default=self._start_s) - self._start_s

    async def drive(self, samples: Sequence[Sample], traffic: Traffic, send: Send) -> None:
        """Sends all samples and waits for all answers. Cancelled, it drops those under way and keeps the others.

        Times are those of the event loop's clock.
        """
        clock = asyncio.get_running_loop().time
        places: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        if traffic.max_concurrency is not None:
            places = asyncio.Semaphore(traffic.max_concurrency)
        self._start_s = clock()
        async with asyncio.TaskGroup() as group:
            for sample, due_s in zip(samples, arrivals(traffic), strict=False):
                wait_s = self._start_s + due_s - clock()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._one(sample, places, send))

    async def _one(self, sample: Sample, places: contextlib.AbstractAsyncContextManager[object], send: Send) -> None:
        clock = asyncio.get_running_loop().time
        async with places:
            outcome = Outcome(start_s=clock())
            try:
                await send(sample, outcome)
            except SglError as error:
                outcome.error = error.message
            outcome.end_s = clock()
        self.outcomes.append(outcome)
        self._on_outcome(outcome)


async def warm_up_with(samples: Sequence[Sample], send: Send) -> None:
    """Sends requests that are not measured.

    Raises:
        SglError: one failed, and so would those that are.
    """
    run = Run()
    await run.drive(samples, Traffic(), send)
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
