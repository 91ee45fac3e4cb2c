"""Torch's types by the names that the configuration uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def torch_dtype(name: str) -> torch.dtype:
    """``bfloat16`` as `torch.bfloat16`; knows what ``--dtype`` resolves to."""
    import torch

    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def cache_dtype(name: str) -> torch.dtype | None:
    """What ``--kv-cache-dtype`` rounds keys and values to; None for auto."""
    import torch

    rounded = {"int8": torch.int8, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
    return None if name == "auto" else rounded[name]
