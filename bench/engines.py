"""What a one-batch benchmark can run: this engine, and others behind the same small interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sgl.bench.constraint import check_lengths
from sgl.bench.correct import Spoken, speak
from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import Grammar, SamplingParams

Prompts = Sequence[Sequence[int]]


@asynccontextmanager
async def recorded(engine: AsyncEngine, traces: list[str]) -> AsyncIterator[None]:
    """Records with torch's profiler what the engine does meanwhile, and adds the file to ``traces``."""
    await engine.call("start_profile")
    try:
        yield
    finally:
        traces.append((await engine.call("stop_profile"))["path"])


@dataclass
class Timing:
    """When a batch began and when each of its tokens came (seconds of `time.perf_counter`).

    Args:
        tokens: by request.
        cached: prompt tokens that were not computed again; None if the engine does not say.
    """

    start_s: float
    tokens: list[list[float]] = field(default_factory=list)
    cached: int | None = None

    @property
    def prefilled_s(self) -> float:
        """When the last request had its first token."""
        return max(times[0] for times in self.tokens)

    @property
    def end_s(self) -> float:
        return max(times[-1] for times in self.tokens)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of all requests per second, while all of them decode; 0 if they never do."""
        begin, end = self.prefilled_s, min(times[-1] for times in self.tokens)
        count = sum(1 for times in self.tokens for when in times if begin < when <= end)
        return count / (end - begin) if end > begin else 0.0


class BatchEngine(Protocol):
    """Answers a batch of prompts greedily with exactly ``output_len`` tokens each."""

    name: str

    def run(self, prompts: Prompts, output_len: int) -> Timing: ...

    def close(self) -> None: ...


class SglEngine:
    """This engine, in this process or in one of its own, through the API that everybody uses.

    Args:
        profile: whether runs are recorded; the files are in ``traces``.
        grammar: that all answers are kept to.
    """

    name = "sgl"

    def __init__(
        self, config: EngineConfig, *, in_process: bool = True, profile: bool = False, grammar: Grammar | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._profile = profile
        self._grammar = grammar
        self.engine = AsyncEngine.start(config, in_process=in_process)
        self.traces: list[str] = []

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        return self.run_each(prompts, [output_len] * len(prompts))

    def run_each(self, prompts: Prompts, output_lens: Sequence[int]) -> Timing:
        """As `run`, each prompt with its own length of answer.

        Raises:
            ContaminatedError: the grammar let an answer end early.
        """
        return self._loop.run_until_complete(self._recorded(prompts, output_lens))

    async def _recorded(self, prompts: Prompts, output_lens: Sequence[int]) -> Timing:
        if not self._profile:
            return await self._run(prompts, output_lens)
        async with recorded(self.engine, self.traces):
            return await self._run(prompts, output_lens)

    async def _run(self, prompts: Prompts, output_lens: Sequence[int]) -> Timing:
        requests = [
            GenerateRequest(
                input_ids=list(ids),
                sampling=SamplingParams(
                    max_new_tokens=output_len, temperature=0.0, ignore_eos=True, grammar=self._grammar
                ),
                stream=True,
            )
            for ids, output_len in zip(prompts, output_lens, strict=True)
        ]
        timing = Timing(time.perf_counter(), [[] for _ in prompts])
        cached = [0] * len(prompts)
        async for position, item in self.engine.generate_batch(requests):
            timing.tokens[position] += [time.perf_counter()] * len(item.token_ids)
            cached[position] = item.cached_tokens
        check_lengths(sum(output_lens), sum(map(len, timing.tokens)))
        timing.cached = sum(cached)
        return timing

    def speak(self, prompts: Sequence[str], output_len: int) -> dict[str, Spoken]:
        """What it says to each prompt by itself, greedily, and how sure it is."""
        return {prompt: self._loop.run_until_complete(speak(self.engine, prompt, output_len)) for prompt in prompts}

    def close(self) -> None:
        self._loop.run_until_complete(self.engine.shutdown())
        self._loop.close()
