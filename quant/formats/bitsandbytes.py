"""bitsandbytes: int8 with a scale per output, and codes of 4 bits (nf4, fp4) whose scales may be quantized again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.linear import CodedWeight, DecodedWeight, QuantizedWeight, StoredWeight
from sgl.quant.scheme import Part, Scheme
from sgl.quant.stored import Fields, Layout, Tensors, is_kept

_F32, _U8 = (torch.float32,), (torch.uint8,)
_STATE = "weight.quant_state.bitsandbytes__"

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The sixteen numbers of nf4, QLoRA's appendix E (Dettmers 2023)."""


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """``weight`` int8 and ``SCB``, the greatest magnitude of every output."""

    @property
    def label(self) -> str:
        return "bnb-int8"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        return (
            Part("weight", (torch.int8,), ((rows, inner),)),
            Part("SCB", _F32, ((rows,),)),
            Part("weight_format", _U8, ((), (1,)), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        if (layout := tensors.get("weight_format")) is not None and int(layout) != 0:
            raise ValueError("weight_format is not 0, the order of rows")
        scales = (tensors["SCB"] / 127).view(rows, 1)
        values = (tensors["weight"].view(torch.uint8) ^ 128).contiguous()
        return QuantizedWeight(values, scales, None, 8, inner, weight_only=True)


@dataclass(frozen=True, slots=True)
class Codes4:
    """``weight``, two codes in a byte, the high half first, with the greatest magnitude of every block of numbers."""

    kind: Literal["nf4", "fp4"] = "nf4"

    @property
    def label(self) -> str:
        return f"bnb-{self.kind}"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        return (
            Part("weight", _U8, ((-(-rows * inner // 2), 1), (1, -(-rows * inner // 2)))),
            Part("weight.absmax", (torch.float32, torch.uint8), ()),
            Part("weight.quant_map", _F32, ((16,),)),
            Part(f"{_STATE}{self.kind}", _U8, ()),
            Part("weight.nested_absmax", _F32, (), optional=True),
            Part("weight.nested_quant_map", _F32, ((256,),), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> StoredWeight:
        state = _state(tensors[f"{_STATE}{self.kind}"])
        if state.get("shape") != [rows, inner]:
            raise ValueError(f"its quant_state is of shape {state.get('shape')} instead of {[rows, inner]}")
        packed, count = tensors["weight"].flatten(), rows * inner
        codes = torch.stack((packed >> 4, packed & 15), 1).flatten()[:count]
        size, table = _size(state, "blocksize"), tensors["weight.quant_map"]
        scales = _scales(tensors, state)
        if scales.numel() != -(-count // size):
            raise ValueError(f"weight.absmax has {scales.numel()} numbers for {-(-count // size)} blocks of {size}")
        if inner % size == 0:
            return CodedWeight(codes.view(rows, inner), table, scales.view(rows, -1), size)
        padded = functional.pad(table[codes.int()], (0, -count % size)).view(-1, size)  # blocks go on in the next row
        return DecodedWeight((padded * scales[:, None]).flatten()[:count].view(rows, inner), 4)

    def encode(self, weight: Tensor, size: int = 64) -> dict[str, Tensor]:
        """A weight in nf4, blocks of 64, scales in float32."""
        table = torch.tensor(_NF4, device=weight.device)
        flat = functional.pad(weight.float().flatten(), (0, -weight.numel() % size)).view(-1, size)
        peaks = flat.abs().amax(1)
        steps = flat * torch.where(peaks > 0, 1 / peaks, 0.0)[:, None]
        codes = torch.bucketize(steps, (table[1:] + table[:-1]) / 2).to(torch.uint8).flatten()[: weight.numel()]
        codes = functional.pad(codes, (0, codes.numel() % 2))
        state = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
        return {
            "weight": (codes[::2] << 4 | codes[1::2]).view(-1, 1),
            "weight.absmax": peaks,
            "weight.quant_map": table,
            f"{_STATE}nf4": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
        }


def _state(tensor: Tensor) -> dict[str, Any]:
    try:
        state = json.loads(bytes(tensor.tolist()))
    except ValueError:
        raise ValueError("its quant_state is not JSON") from None
    if not isinstance(state, dict):
        raise ValueError("its quant_state is not an object")
    return state


def _size(state: Mapping[str, Any], name: str) -> int:
    size = state.get(name)
    if type(size) is not int or size < 1:
        raise ValueError(f"its quant_state has {name} {size!r}")
    return size


def _scales(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """The greatest magnitude of every block; they may be codes of 8 bits with scales of their own."""
    absmax = tensors["weight.absmax"]
    if absmax.dtype == torch.float32:
        return absmax
    size, offset = _size(state, "nested_blocksize"), state.get("nested_offset")
    nested, table = tensors.get("weight.nested_absmax"), tensors.get("weight.nested_quant_map")
    if nested is None or table is None or not isinstance(offset, int | float):
        raise ValueError("weight.absmax is quantized, but weight.nested_absmax, its map or its offset is missing")
    if nested.numel() != -(-absmax.numel() // size):
        raise ValueError(f"weight.nested_absmax has {nested.numel()} numbers for {absmax.numel()} in blocks of {size}")
    return table[absmax.int()] * nested.repeat_interleave(size)[: absmax.numel()] + torch.tensor(float(offset))


def read(fields: Fields) -> Layout:
    kept = [*fields.names("llm_int8_skip_modules"), *fields.names("modules_to_not_convert")]

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        if is_kept(module, kept):
            return None
        if "SCB" in tensors:
            return Int8Rows()
        kinds: tuple[Literal["nf4", "fp4"], ...] = ("nf4", "fp4")
        return next((Codes4(kind) for kind in kinds if f"{_STATE}{kind}" in tensors), None)

    return Layout("bitsandbytes", scheme_of)
