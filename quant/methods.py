"""The methods by which checkpoints say that they are quantized, and the reader of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgl.engine.base.errors import ModelError
from sgl.quant.formats import awq, bitsandbytes, compressed_tensors, fp8, gguf, gptq, modelopt, torchao
from sgl.quant.stored import Fields, Layout

METHODS: Mapping[str, Callable[[Fields], Layout]] = {
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "modelopt": modelopt.read,
    "torchao": torchao.read,
    "gguf": gguf.read,
}

_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files in which older checkpoints say what belongs in config.json, and the method of each."""


def read_layout(model_dir: Path, hf_config: Mapping[str, Any]) -> Layout | None:
    """How the checkpoint's weights are stored; None if it is not quantized.

    Raises:
        ModelError: its method is not supported, or a field of it is wrong.
    """
    stored = hf_config.get("quantization_config") or hf_config.get("compression_config") or _beside(model_dir)
    if not stored:
        return None
    if not isinstance(stored, dict):
        raise ModelError("config.json: quantization_config must be an object.")
    method = str(stored.get("quant_method")).lower().replace("_", "-")
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise ModelError(
            f"config.json: quantization_config.quant_method {method!r} is not supported; supported: {known}."
        )
    return METHODS[method](Fields(stored))


def _beside(model_dir: Path) -> dict[str, Any] | None:
    for name, method in _BESIDE.items():
        path = model_dir / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path} must hold a JSON object.")
        return {"quant_method": method, **content.get("quantization", content)}
    return None
