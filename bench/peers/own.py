"""This engine in a process of its own, as `worker` runs the peers: two configurations do not share threads or memory.

{"load": "sgl", "config": EngineConfig as JSON}
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import sgl
from sgl.bench.peers.worker import Json, Prompts, own_output, serve
from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import SamplingParams


class Own:
    """A `worker.Peer`."""

    def __init__(self, request: Json) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEngine.start(EngineConfig.from_json(request["config"].encode()), in_process=True)
        info = self._engine.info
        self.facts: dict[str, Any] = {
            "version": f"sgl {sgl.__version__}",
            "weight_bytes": info.cost.weight_bytes,
            "vocab_size": info.vocab_size,
        }

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        return self._loop.run_until_complete(self._run(prompts, output_lens))

    async def _run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        requests = [
            GenerateRequest(
                input_ids=list(ids),
                sampling=SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True),
                stream=True,
            )
            for ids, output_len in zip(prompts, output_lens, strict=True)
        ]
        tokens: list[list[float]] = [[] for _ in prompts]
        start_s = time.perf_counter()
        async for position, item in self._engine.generate_batch(requests):
            tokens[position] += [time.perf_counter()] * len(item.token_ids)
        return start_s, tokens


if __name__ == "__main__":
    serve(Own, sys.stdin, own_output())
