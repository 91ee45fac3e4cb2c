"""Throughput of the engine in this process on a whole data set; reads no data and prints nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from sgl.bench.bandwidth import BandwidthProbe, moved
from sgl.bench.data import Sample
from sgl.bench.figures import Outcome, num_cached, throughput
from sgl.bench.load import Run, Send, Traffic, warm_up_with
from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams

_FLUSH_TIMEOUT_S = 5.0


class Offline:
    """One run: all samples at once, the prefix cache empty at the start.

    Args:
        run: takes the outcomes.
        ignore_eos: whether answers have exactly the tokens asked for.
    """

    def __init__(self, engine: AsyncEngine, run: Run, ignore_eos: bool = True) -> None:
        self._engine = engine
        self._run = run
        self._send = _sender(engine, ignore_eos)
        self._probe = BandwidthProbe()
        self._before = 0.0

    async def measure(self, samples: Sequence[Sample], warm_up: Sequence[Sample]) -> None:
        """
        Raises:
            SglError: a warm-up request failed.
        """
        await warm_up_with(warm_up, self._send)
        await self._flush()
        self._before = self._probe.measure()
        await self._run.drive(samples, Traffic(), self._send)

    def result(self) -> dict[str, Any]:
        """Figures of what was measured, by SGLang's names, with the bandwidth (bytes per second) of that minute."""
        done = [outcome for outcome in self._run.outcomes if not outcome.error]
        failed = [outcome for outcome in self._run.outcomes if outcome.error]
        figures = throughput(done, self._run.duration_s)
        after = self._probe.measure()
        return {
            "successful_requests": figures.pop("completed"),
            **figures,
            "total_cached_tokens": num_cached(done),
            "cache_state": "flushed",
            "bandwidth_before": self._before,
            "bandwidth_after": after,
            "bandwidth_moved": moved(self._before, after),
            "failed": len(failed),
            "first_error": failed[0].error if failed else "",
            "interrupted": self._run.interrupted,
        }

    async def _flush(self) -> None:
        """Empties the prefix cache as soon as the engine is idle."""
        deadline_s = time.monotonic() + _FLUSH_TIMEOUT_S
        while not (await self._engine.call("flush_cache"))["success"]:
            if time.monotonic() > deadline_s:
                raise SglError("The prefix cache cannot be emptied: the engine is not idle after the warm-up.")
            await asyncio.sleep(0.01)


def _sender(engine: AsyncEngine, ignore_eos: bool) -> Send:
    async def send(sample: Sample, outcome: Outcome) -> None:
        sampling = SamplingParams(max_new_tokens=sample.output_len, temperature=0.0, ignore_eos=ignore_eos)
        async for item in engine.generate(GenerateRequest(input_ids=sample.input_ids, sampling=sampling)):
            outcome.input_len = item.prompt_tokens
            outcome.output_len = item.completion_tokens
            outcome.cached_len = item.cached_tokens

    return send
