"""Runs an `AsyncEngine` over the fake loop, with a real tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import SamplingParams
from tests.text import vocabularies

LOOP = "tests.engine.fake_loop:build_loop"


def checkpoint(directory: Path, behaviour: str = "well") -> Path:
    """A directory that the fake loop behaves by; its tokenizer is byte-level."""
    return vocabularies.write(directory / behaviour, vocabularies.byte_level(), config={"eos_token_id": 1})


def config(path: Path, **values: Any) -> EngineConfig:
    """Options by name, with underscores for the dot: ``schedule__stream_interval=2``."""
    given = {"model.model_path": str(path), "model.random_seed": 0, "observe.log_level": "error"}
    given.update({name.replace("__", "."): value for name, value in values.items()})
    return EngineConfig().replace({key: (value, "test") for key, value in given.items()})


@asynccontextmanager
async def running(path: Path, *, in_process: bool = True, **values: Any) -> AsyncIterator[AsyncEngine]:
    engine = await asyncio.to_thread(AsyncEngine.start, config(path, **values), in_process=in_process, loop=LOOP)
    try:
        yield engine
    finally:
        await engine.shutdown()


def with_engine(path: Path, use: Callable[[AsyncEngine], Coroutine[Any, Any, Any]], **values: Any) -> Any:
    """Runs a coroutine on an engine of its own."""

    async def main() -> Any:
        async with asyncio.timeout(60), running(path, **values) as engine:
            return await use(engine)

    return asyncio.run(main())


def greedy(max_new_tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, **params)


async def collect(engine: AsyncEngine, request: GenerateRequest) -> list[Generation]:
    return [item async for item in engine.generate(request)]
