"""The blocks of GGUF (ggml's quantizations): every row of a weight is a sequence of blocks of 32 or 256 numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight, StoredWeight, is_finite
from sgl.quant.scheme import Part, Scheme
from sgl.quant.stored import Fields, Layout, Tensors

_SMALL, _LARGE = 32, 256


@dataclass(frozen=True, slots=True)
class Blocks:
    """One tensor of bytes ``[N, bytes of a row]``, named as its type, and what its blocks mean."""

    name: str
    numbers: int
    size_bytes: int
    read: Callable[[Tensor], StoredWeight]  # uint8 [N, blocks, bytes] -> the weight

    @property
    def label(self) -> str:
        return self.name

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        if inner % self.numbers:
            raise ValueError(f"{inner} inputs cannot be shared out to blocks of {self.numbers}")
        return (Part(self.name, (torch.uint8,), ((rows, inner // self.numbers * self.size_bytes),)),)

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> StoredWeight:
        weight = self.read(tensors[self.name].view(rows, -1, self.size_bytes))
        if not is_finite(weight):
            raise ValueError("its scales hold NaN or infinite values")
        return weight


def _halves(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at a byte of every block, in float32 ``[N, blocks, 1]``."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float()


def _low_high(blocks: Tensor) -> Tensor:
    """Half bytes: first all low ones, then all high ones."""
    return torch.cat((blocks & 15, blocks >> 4), -1)


def _fifth_bits(blocks: Tensor) -> Tensor:
    """Bit i of 4 bytes as 16 times itself, ``[N, blocks, 32]``."""
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    return (blocks.unsqueeze(-1).bitwise_right_shift(places).bitwise_and_(1) << 4).flatten(-2)


def _parts(values: Tensor, *sizes: int) -> Tensor:
    """The last dimension as several."""
    return values.reshape(*values.shape[:-1], *sizes)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(1).contiguous()


def _q4_0(blocks: Tensor) -> StoredWeight:
    scales = _halves(blocks, 0).squeeze(-1).contiguous()
    return QuantizedWeight(_flat(_low_high(blocks[..., 2:])), scales, None, 4, _SMALL, weight_only=True)


def _q4_1(blocks: Tensor) -> StoredWeight:
    return _with_offsets(_low_high(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2), 4)


def _q5_0(blocks: Tensor) -> StoredWeight:
    values = (_low_high(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])) + (128 - 16)
    scales = _halves(blocks, 0).squeeze(-1).contiguous()
    return QuantizedWeight(_flat(values), scales, None, 8, _SMALL, weight_only=True)


def _q5_1(blocks: Tensor) -> StoredWeight:
    values = _low_high(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _with_offsets(values, _halves(blocks, 0), _halves(blocks, 2), 8)


def _q8_0(blocks: Tensor) -> StoredWeight:
    scales = _halves(blocks, 0).squeeze(-1).contiguous()
    return QuantizedWeight(_flat(blocks[..., 2:] ^ 128), scales, None, 8, _SMALL, weight_only=True)


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes of every block -> its eight scales and eight minima, float32 ``[N, blocks, 8]``."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), -1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), -1)
    return scales.float(), minima.float()


def _with_offsets(values: Tensor, scales: Tensor, offsets: Tensor, bits: Literal[4, 8]) -> StoredWeight:
    """Values in parts of 32 with a scale and an offset each."""
    return QuantizedWeight(_flat(values), _flat(scales), None, bits, _SMALL, weight_only=True, offsets=_flat(offsets))


def _affine(blocks: Tensor, values: Tensor, bits: Literal[4, 8]) -> StoredWeight:
    """Values ``[N, blocks, 256]`` in eight parts with a scale and a minimum each."""
    scales, minima = _six_bit_pairs(blocks[..., 4:16])
    return _with_offsets(values, _halves(blocks, 0) * scales, _halves(blocks, 2) * -minima, bits)


def _q4_k(blocks: Tensor) -> StoredWeight:
    return _affine(blocks, _low_high(_parts(blocks[..., 16:], 4, _SMALL)).flatten(-2), 4)


def _q5_k(blocks: Tensor) -> StoredWeight:
    low = _low_high(_parts(blocks[..., 48:], 4, _SMALL)).flatten(-2)
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device).unsqueeze(-1)
    high = blocks[..., None, 16:48].bitwise_right_shift(places).bitwise_and_(1) << 4  # [N, blocks, 8, 32]
    return _affine(blocks, low | high.flatten(-2), 8)


def _q6_k(blocks: Tensor) -> StoredWeight:
    low = _low_high(_parts(blocks[..., :128], 2, 64)).flatten(-2)  # halves of 128: 64 low, 64 high
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).unsqueeze(-1)
    high = _parts(blocks[..., 128:192], 2, 1, 32).bitwise_right_shift(places).bitwise_and_(3) << 4
    values = (low | high.flatten(-3)) + (128 - 32)
    scales = _halves(blocks, 208) * blocks[..., 192:208].contiguous().view(torch.int8).float()
    return QuantizedWeight(_flat(values), _flat(scales), None, 8, 16, weight_only=True)


_SCHEMES = (
    Blocks("q4_0", _SMALL, 18, _q4_0),
    Blocks("q4_1", _SMALL, 20, _q4_1),
    Blocks("q5_0", _SMALL, 22, _q5_0),
    Blocks("q5_1", _SMALL, 24, _q5_1),
    Blocks("q8_0", _SMALL, 34, _q8_0),
    Blocks("q4_k", _LARGE, 144, _q4_k),
    Blocks("q5_k", _LARGE, 176, _q5_k),
    Blocks("q6_k", _LARGE, 210, _q6_k),
)
BY_NAME: Mapping[str, Blocks] = {scheme.name: scheme for scheme in _SCHEMES}


def read(fields: Fields) -> Layout:
    """A weight's type is the last part of its tensor's name."""

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        return next((BY_NAME[name] for name in tensors if name in BY_NAME), None)

    return Layout("gguf", scheme_of)
