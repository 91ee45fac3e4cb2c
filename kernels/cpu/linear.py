"""Linear layers over weights packed for the C++ kernels (linear.cpp): one layout from one row to thousands."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.cpu import native
from sgl.kernels.ops.linear import Float32Linear, GatedLinear, LinearFn, PlainLinear
from sgl.kernels.registry import impl

PANEL = 64
"""Output columns of a panel."""

Form = Literal["plain", "gated", "float32"]


@dataclass(frozen=True, slots=True)
class NativeLinear:
    """``y [T, N] = x [T, K] @ W.T + b`` in bf16; a row's result does not depend on the other rows.

    The form of the result: ``plain``; ``gated``, where the columns are gates and ups and the result is
    ``silu(gate) * up`` of half the width; or ``float32``, which is not rounded to bf16.
    """

    weight: Tensor  # bf16 [panels * K * 64], see linear.cpp
    bias: Tensor | None  # float32 [panels * 64]
    in_features: int
    out_features: int
    form: Form
    library: ctypes.CDLL

    @property
    def packed_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = self.out_features // 2 if self.form == "gated" else self.out_features
        y = torch.empty(x.shape[0], width, dtype=torch.float32 if self.form == "float32" else torch.bfloat16)
        bias = None if self.bias is None else self.bias.data_ptr()
        operands = (x.data_ptr(), x.shape[0], self.in_features, self.weight.data_ptr(), self.out_features, bias)
        if self.form == "float32":
            self.library.sgl_linear_bf16_f32(*operands, y.data_ptr())
        else:
            self.library.sgl_linear_bf16(*operands, y.data_ptr(), 2 if self.form == "gated" else 0)
        return y


class WeightBlock:
    """One stretch of huge pages for the weights of many layers: most are too small to fill huge pages of their own."""

    def __init__(self, size_bytes: int) -> None:
        self._block = native.anonymous(size_bytes // 2, torch.bfloat16)
        self._used = 0

    def take(self, linear: NativeLinear) -> NativeLinear:
        """The same layer with its weight moved here, behind those that came before it."""
        end = self._used + linear.weight.numel()
        weight = self._block[self._used : end].copy_(linear.weight)
        self._used = end
        return replace(linear, weight=weight)


@impl("linear", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear(weight: Tensor, bias: Tensor | None) -> LinearFn:
    if weight.shape[1] % 2:
        return PlainLinear(weight, bias)
    return pack(weight, bias, "plain")


@impl("linear.float32", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear_float32(weight: Tensor, bias: Tensor | None) -> LinearFn:
    if weight.shape[1] % 2:
        return Float32Linear(PlainLinear(weight, bias))
    return pack(weight, bias, "float32")


@impl("linear.silu_mul", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear_silu_mul(weight: Tensor, bias: Tensor | None) -> LinearFn:
    """Gates and ups that belong together come to stand in one panel, 32 of each."""
    if weight.shape[1] % 2:
        return GatedLinear(PlainLinear(weight, bias))
    half, pad = weight.shape[0] // 2, -(weight.shape[0] // 2) % (PANEL // 2)

    def interleave(rows: Tensor) -> Tensor:
        parts = (functional.pad(part, (0, 0, 0, pad)) for part in (rows[:half], rows[half:]))
        gate, up = (part.view(-1, PANEL // 2, rows.shape[1]) for part in parts)
        return torch.cat((gate, up), 1).flatten(0, 1)

    biases = None if bias is None else interleave(bias[:, None])[:, 0]
    return pack(interleave(weight), biases, "gated", width=2 * half)


def pack(weight: Tensor, bias: Tensor | None, form: Form, *, width: int | None = None) -> NativeLinear:
    """Packs a weight ``[N, K]``, K even; ``width`` is the number of columns that count (default N)."""
    library = native.library()
    columns, inner = weight.shape
    panels = -(-columns // PANEL)
    packed = native.anonymous(panels * PANEL * inner, torch.bfloat16)
    weight = weight.contiguous()
    library.sgl_pack_bf16(weight.data_ptr(), columns, inner, packed.data_ptr())
    padded = None if bias is None else functional.pad(bias.float(), (0, panels * PANEL - columns))
    return NativeLinear(packed, padded, inner, width or columns, form, library)
