"""Records what a checkpoint's weights compute, so that whoever serves it can tell when they do no longer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl.engine.api import AsyncEngine
from sgl.engine.base import hub, sources
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import SglError

_CACHE_TOKENS = 1024


def record(path: Path, overrides: Mapping[str, Any], dtype: str) -> Path:
    """Writes `hub.CANARY_FILE` into a checkpoint's directory.

    Raises:
        SglError: the model cannot be loaded, its scores make no sense, or the directory cannot be written.
    """
    options = {
        "model_path": str(path),
        "dtype": dtype,
        "device": "cpu",
        "json_model_override_args": json.dumps(overrides),
        "max_total_tokens": _CACHE_TOKENS,
        "canary": "off",
    }
    golden = asyncio.run(_golden(sources.configure(sources.from_call(options))))
    file = path / hub.CANARY_FILE
    try:
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(golden) + "\n", encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        raise SglError(f"{file} cannot be written: {error.strerror}.", param="--record-canary") from None
    return file


async def _golden(config: EngineConfig) -> dict[str, Any]:
    engine = await asyncio.to_thread(AsyncEngine.start, config, in_process=True)
    try:
        return await engine.call("golden")
    finally:
        await engine.shutdown()
