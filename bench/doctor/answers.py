"""Whether the whole engine, with its scheduler, cache and decoding, says what the reference says; runs on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.bench.correct import PROMPTS, TOLERANCE, Spoken
from sgl.bench.doctor.fault import Fault
from sgl.bench.engines import SglEngine
from sgl.engine.base import sources
from sgl.engine.base.config import EngineConfig

if TYPE_CHECKING:
    from torch import Tensor

OUTPUT_LEN = 16
_CACHE_TOKENS = 2048


def speak(path: Path, overrides: Mapping[str, Any], dtype: str) -> list[Spoken]:
    """The engine's own answers to the built-in prompts: these are computed at once, the answers token by token."""
    engine = SglEngine(_config(path, overrides, dtype))
    try:
        return list(engine.speak(PROMPTS, OUTPUT_LEN).values())
    finally:
        engine.close()


def compare(spoken: Spoken, scores: Tensor, dtype: str) -> list[Fault]:
    """The first token of which the engine thinks otherwise.

    Args:
        scores: the reference's log probabilities behind every token but the last, float32 ``[T - 1, V]``.
    """
    for place, (token_id, own) in enumerate(zip(spoken.token_ids[1:], spoken.logprobs, strict=True), 1):
        reference = float(scores[place - 1, token_id])
        if abs(own - reference) > TOLERANCE[dtype]:
            is_prompt = place <= spoken.num_prompt  # the last of it says what the first answered is
            return [
                Fault(
                    "answers",
                    "wrong",
                    f"{'prefill' if is_prompt else 'decode'}, token {place} of a prompt of {spoken.num_prompt}",
                    f"log probability {reference:.4f}, as the reference has it",
                    f"{own:.4f}, though the layers by themselves agree",
                    "report a bug in sgl: batch, positions, cache or the joined layers",
                )
            ]
    return []


def _config(path: Path, overrides: Mapping[str, Any], dtype: str) -> EngineConfig:
    options: dict[str, Any] = {
        "model_path": str(path),
        "dtype": dtype,
        "device": "cpu",
        "attention_backend": "torch_native" if dtype == "float32" else "auto",
        "json_model_override_args": json.dumps(overrides),
        "max_total_tokens": _CACHE_TOKENS,
        "canary": "off",  # what is wrong is to be found, not refused
    }
    return sources.configure(sources.from_call(options))
