"""A peer on a whole data set, as `sgl.bench.offline` measures this engine; reads no data and prints nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sgl.bench.contamination import Clocks
from sgl.bench.data import Sample
from sgl.bench.engines import Timing
from sgl.bench.figures import Outcome, throughput
from sgl.bench.load import Run, Traffic
from sgl.bench.peers.engine import WorkerEngine
from sgl.engine.base.errors import ConfigError


class PeerOffline:
    """A `series.Bench`. The peer gets all requests as one batch: how it schedules them is its own affair."""

    is_local = True

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine
        self._clocks = Clocks.now()

    async def measure(
        self, run: Run, samples: Sequence[Sample], traffic: Traffic, warm_up: Sequence[Sample], *, flush: bool
    ) -> None:
        """
        Raises:
            ConfigError: conversations, whose questions cannot all be asked at once.
            SglError: the engine failed.
        """
        if any(sample.later for sample in samples):
            raise ConfigError(f"{self._engine.name} is not measured on conversations.", param="--dataset-name")
        if warm_up:
            await self._ask(warm_up)
        batch = asyncio.Lock()
        timing: list[Timing] = []
        places = iter(range(len(samples)))

        async def send(sample: Sample, outcome: Outcome) -> None:
            place = next(places)
            async with batch:  # the first one sends all
                if not timing:
                    timing.append(await self._ask(samples))
            outcome.input_len, outcome.output_len = len(sample.prompt_ids), sample.output_len
            outcome.arrivals = [(when_s, 1) for when_s in timing[0].tokens[place]]

        self._clocks = Clocks.now()
        await run.drive(samples, traffic, send)

    def verify(self, run: Run, samples: Sequence[Sample], cache_state: str) -> list[str]:
        """
        Raises:
            ContaminatedError: the clock jumped.
        """
        self._clocks.check(Clocks.now())
        return [f"{self._engine.name} does not say what it had cached."]

    def result(self, run: Run, traffic: Traffic, slo: dict[str, float], *, flush: bool) -> dict[str, Any]:
        """Figures of what was measured, by SGLang's names."""
        done = [outcome for outcome in run.outcomes if not outcome.error]
        failed = [outcome for outcome in run.outcomes if outcome.error]
        figures = throughput(done, run.duration_s)
        return {
            "engine": self._engine.name,
            "engine_version": self._engine.version,
            "successful_requests": figures.pop("completed"),
            **figures,
            "total_cached_tokens": None,
            "failed": len(failed),
            "first_error": failed[0].error if failed else "",
            "interrupted": run.interrupted,
        }

    async def _ask(self, samples: Sequence[Sample]) -> Timing:
        """On a thread: the event loop goes on."""
        prompts, lengths = [sample.prompt_ids for sample in samples], [sample.output_len for sample in samples]
        return await asyncio.to_thread(self._engine.run_each, prompts, lengths)
