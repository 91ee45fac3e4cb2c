"""What the weights of a checkpoint will about take in memory, by the headers of its files; reads no weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl.engine.base.config import EngineConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = ("F64", "F32", "F16", "BF16")
_STORED_BYTES = {"I64": 8, "I16": 2, "BOOL": 1}
_MAX_HEADER_BYTES = 100 << 20  # what safetensors itself allows
_LINEAR = re.compile(r"\.\d+\.(?!.*norm).*weight$")
_ROUNDED_BYTES = {"int8": 1.0, "int4": 0.56, "fp8": 1.0, "nf4": 0.56}
"""Of a number that is rounded while loading, by the beginning of the option's value, where a kernel takes it so."""


@dataclass(frozen=True, slots=True)
class _Rates:
    """Bytes of a number once it is loaded.

    Attributes:
        item: in floating point.
        is_packed: whether kernels take the integers of formats as they are.
        on_cpu: whether kernels take the codes of 4 bits, too.
        rounded: of linear layers in floating point.
        bits: of a number in words of 32.
        has_table: whether the codes of 4 bits are bitsandbytes', which have a table of their own.
        width: inputs that share a scale in fp8; 0: all.
    """

    item: int
    is_packed: bool
    on_cpu: bool
    rounded: float
    bits: int
    has_table: bool
    width: int

    def size(self, name: str, kind: str, shape: list[int]) -> float:
        """Bytes of a tensor."""
        count = math.prod(shape)
        if kind in _FLOATS:
            return count * (self.rounded if len(shape) == 2 and _LINEAR.search(name) else self.item)
        if kind == "I32":
            return count * 32 / self.bits * ((0.5 if self.bits <= 4 else 1) if self.is_packed else self.item)
        if kind == "U8":  # two codes in a byte
            return 2 * count * ((0.56 if self.has_table else 1) if self.is_packed and self.on_cpu else self.item)
        if kind.startswith("F8"):
            return count * (1 if self.is_packed and self._fits(shape) else self.item)
        if kind == "I8":
            return count * (1 if self.is_packed else self.item)
        return count * _STORED_BYTES.get(kind, 1)

    def _fits(self, shape: list[int]) -> bool:
        """Whether there are kernels for a tensor in fp8; see ``fits_coded_products`` of kernels/ops/linear.py."""
        if not self.on_cpu or len(shape) != 2:
            return True
        return shape[1] % 4 == 0 and (self.width >= shape[1] or self.width % 32 == 0)


def loaded_bytes(folder: Path, config: EngineConfig, hf_config: Mapping[str, Any]) -> int:
    """Of all tensors; 0 if there are none, or a file is none of safetensors."""
    rates = _rates(config, hf_config.get("quantization_config") or {})
    try:
        headers = [_header(file) for file in sorted(folder.glob("*.safetensors"))]
        tensors = [(name, facts) for header in headers for name, facts in header.items() if name != "__metadata__"]
        return int(sum(rates.size(name, facts["dtype"], facts["shape"]) for name, facts in tensors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _rates(config: EngineConfig, stored: Mapping[str, Any]) -> _Rates:
    on_cpu, dtype, item = config.model.device == "cpu", config.model.dtype, ITEM_BYTES[config.model.dtype]
    is_packed = dtype == "bfloat16" or not on_cpu
    asked = config.model.torchao_config if config.model.quantization == "none" else config.model.quantization
    kind = next((name for name in _ROUNDED_BYTES if asked.startswith(name)), "")
    is_decoded = not is_packed or not kind or (kind == "nf4" and not on_cpu) or bool(stored)
    groups = stored.get("config_groups")
    weights = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else [stored]
    bits = next((found for entry in weights if (found := entry.get("num_bits") or entry.get("bits"))), 4)
    return _Rates(
        item=item,
        is_packed=is_packed,
        on_cpu=on_cpu,
        rounded=item if is_decoded else _ROUNDED_BYTES[kind],
        bits=bits if isinstance(bits, int) and 1 <= bits <= 32 else 4,
        has_table=stored.get("quant_method") == "bitsandbytes",
        width=next((width for entry in weights if (width := _width(entry))), 0),
    )


def _width(entry: Mapping[str, Any]) -> int:
    """Of the blocks that a format tells of; 0 if it tells of none."""
    block = entry.get("weight_block_size") or entry.get("block_structure")
    return block[1] if isinstance(block, list) and len(block) == 2 and isinstance(block[1], int) else 0


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(opened.read(length))
        return header
