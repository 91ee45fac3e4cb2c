"""Throughput of the engine in this process on a whole data set; reads no data and prints nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from sgl.bench.constraint import check_run
from sgl.bench.contamination import Clocks, check_cache
from sgl.bench.data import Sample
from sgl.bench.engines import recorded
from sgl.bench.figures import Outcome, by_turn, num_cached, throughput
from sgl.bench.load import Run, Traffic, warm_up_with
from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, SamplingParams

_FLUSH_TIMEOUT_S = 5.0


class Offline:
    """The engine as a benchmark sees it: all requests are its own.

    Args:
        ignore_eos: whether answers have exactly the tokens asked for.
        profile: whether runs are recorded; the files are in ``traces``.
        grammar: that all answers are kept to.
    """

    is_local = True

    def __init__(
        self, engine: AsyncEngine, ignore_eos: bool = True, *, profile: bool = False, grammar: Grammar | None = None
    ) -> None:
        self._engine = engine
        self._profile = profile
        self.traces: list[str] = []
        self._ignore_eos = ignore_eos
        self._grammar = grammar
        self._clocks = Clocks.now()

    async def measure(
        self, run: Run, samples: Sequence[Sample], traffic: Traffic, warm_up: Sequence[Sample], *, flush: bool
    ) -> None:
        """
        Raises:
            SglError: a warm-up request failed, or the cache cannot be emptied.
        """
        await warm_up_with(warm_up, self._send)
        if flush:
            await self._flush()
        self._clocks = Clocks.now()
        async with recorded(self._engine, self.traces) if self._profile else nullcontext():
            await run.drive(samples, traffic, self._send, _follow)

    def verify(self, run: Run, samples: Sequence[Sample], cache_state: str) -> list[str]:
        """
        Raises:
            ContaminatedError: the clock jumped, the cache was in another state than declared, or a grammar let
                answers end early.
        """
        self._clocks.check(Clocks.now())
        if self._grammar is not None and self._ignore_eos:
            check_run(samples, run.outcomes)
        check_cache(cache_state, samples, run.outcomes)
        return []

    def result(self, run: Run, traffic: Traffic, slo: dict[str, float], *, flush: bool) -> dict[str, Any]:
        """Figures of what was measured, by SGLang's names."""
        done = [outcome for outcome in run.outcomes if not outcome.error]
        failed = [outcome for outcome in run.outcomes if outcome.error]
        figures = throughput(done, run.duration_s)
        turns = by_turn(done)
        return {
            "successful_requests": figures.pop("completed"),
            **figures,
            "total_cached_tokens": num_cached(done),
            **({"turns": turns} if turns else {}),
            "failed": len(failed),
            "first_error": failed[0].error if failed else "",
            "interrupted": run.interrupted,
        }

    async def _send(self, sample: Sample, outcome: Outcome) -> None:
        sampling = SamplingParams(
            max_new_tokens=sample.output_len, temperature=0.0, ignore_eos=self._ignore_eos, grammar=self._grammar
        )
        async for item in self._engine.generate(GenerateRequest(input_ids=sample.prompt_ids, sampling=sampling)):
            outcome.input_len = item.prompt_tokens
            outcome.output_len = item.completion_tokens
            outcome.cached_len = item.cached_tokens
            outcome.output_ids = item.output_ids
            if item.first_token_s is not None:  # on the clock of the event loop
                outcome.arrivals = [(item.first_token_s, 1)]

    async def _flush(self) -> None:
        """Empties the prefix cache as soon as the engine is idle."""
        deadline_s = time.monotonic() + _FLUSH_TIMEOUT_S
        while not (await self._engine.call("flush_cache"))["success"]:
            if time.monotonic() > deadline_s:
                raise SglError("The prefix cache cannot be emptied: the engine is not idle after the warm-up.")
            await asyncio.sleep(0.01)


def _follow(sample: Sample, outcome: Outcome) -> Sample | None:
    return sample.follow(outcome.output_ids, outcome.text)
