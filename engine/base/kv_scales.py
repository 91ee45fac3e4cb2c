"""Reads a file of measured scales for a KV cache in fp8, as vLLM and SGLang take them; changes no cache.

Such a scale keeps the greatest key or value of a layer below what fp8 holds. Here every token and head gets a scale of
its own as it is stored, which is at most as large, so a measured one has nothing to add: the file is checked, that a
launcher may name it, and the log says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl.engine.base.errors import ConfigError

FLAG = "--quantization-param-path"
_DTYPE = "float8_e4m3fn"
_MAX_BYTES = 16 << 20


def check(path: str, cache_dtype: str, hf_config: Mapping[str, Any]) -> str:
    """What became of the file, in one sentence.

    Raises:
        ConfigError: it cannot be read, is for another model, or the cache is not kept in fp8.
    """
    if not cache_dtype.startswith("fp8"):
        raise ConfigError(
            f"{FLAG} holds scales of a cache in fp8, and --kv-cache-dtype is {cache_dtype}: set it to fp8_e4m3, or "
            "drop the file.",
            param=FLAG,
        )
    content = _read(path)
    stored, model = content.get("model_type"), hf_config.get("model_type")
    if stored not in (None, model):
        raise _wrong(path, f"is for models of type {str(stored)[:60]!r}, and this one is {model!r}")
    cache = content.get("kv_cache")
    if not isinstance(cache, dict) or cache.get("dtype") != _DTYPE:
        raise _wrong(path, f"must have an object kv_cache with dtype {_DTYPE!r}")
    ranks = cache.get("scaling_factor")
    if not isinstance(ranks, dict) or not ranks:
        raise _wrong(path, "must have kv_cache.scaling_factor, scales by rank and layer")
    for rank, scales in ranks.items():
        _check_rank(path, rank, scales, hf_config.get("num_hidden_layers"))
    return (
        f"{path} was checked and is not needed: keys and values are scaled by token and head as they are stored, which "
        "is at least as fine as a scale per layer."
    )


def _check_rank(path: str, rank: str, scales: Any, num_layers: Any) -> None:
    """The scales of one part of a model that was split: one for every layer."""
    field = f"kv_cache.scaling_factor.{rank[:20]}"
    if not isinstance(scales, dict):
        raise _wrong(path, f"must have scales by layer in {field}")
    if isinstance(num_layers, int) and set(scales) != {str(layer) for layer in range(num_layers)}:
        raise _wrong(path, f"has {len(scales)} scales in {field} for the {num_layers} layers of the model")
    for layer, scale in scales.items():
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not math.isfinite(scale) or scale <= 0:
            raise _wrong(path, f"has {str(scale)[:40]!r} as the scale of layer {layer[:20]}; it must be above zero")


def _read(path: str) -> dict[str, Any]:
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _wrong(path, f"is larger than {_MAX_BYTES >> 20} MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{FLAG} {path} cannot be read: {error.strerror}.", param=FLAG) from None
    except (ValueError, RecursionError):
        raise _wrong(path, "is no JSON") from None
    if not isinstance(content, dict):
        raise _wrong(path, "must be a JSON object")
    return content


def _wrong(path: str, problem: str) -> ConfigError:
    return ConfigError(f"{FLAG} {path} {problem}.", param=FLAG)
