"""Linear layers on a GPU: cuBLAS for weights in floating point, `matmul` for quantized ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops import linear as reference
from sgl.kernels.ops.linear import Allocate, Float8Weight, Form, LinearFn, PlainLinear, QuantizedWeight, fresh
from sgl.kernels.registry import impl
from sgl.kernels.triton.activation import silu_mul
from sgl.kernels.triton.matmul import PackedWeight, matmul
from sgl.kernels.triton.quantize import quantize

_HALF = (torch.bfloat16, torch.float16)
_WIDE_STEP = 128  # bytes of a row that products in eight bits take at a time


@dataclass(frozen=True, slots=True)
class Gated:
    linear: LinearFn

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(self.linear(x))


@dataclass(frozen=True, slots=True)
class WideLinear:
    """A product of numbers in 16 bits that is never rounded to them."""

    weight: Tensor
    packed_bytes: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight.t(), out_dtype=torch.float32)


@impl("linear", "cublas", device="cuda", dtypes=_HALF, priority=20)
def linear(weight: Tensor, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    plain = PlainLinear(weight, bias)
    if form == "float32":
        return WideLinear(weight) if bias is None else reference.shaped(plain, form)
    return Gated(plain) if form == "gated" else plain


@dataclass(frozen=True, slots=True)
class Rounding:
    """What becomes of inputs before a product."""

    dtype: torch.dtype | None = None  # None: they stay as they are
    group: int = 0  # inputs that share a scale; 0 for all of a row
    static: float | None = None  # the scale of all inputs, which the scales of the weight hold already

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs and their scales, if they have any of their own."""
        if self.dtype is None:
            return x.contiguous(), None
        values, scales = quantize(x, self.dtype, self.group or x.shape[1], self.static)
        return values, scales if self.static is None else None


AS_THEY_ARE = Rounding()


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A product with a packed weight, of inputs as its format wants them."""

    weight: PackedWeight
    bias: Tensor | None
    form: Form
    inputs: Rounding
    order: Tensor | None = None  # int64 [K], the input that stands at each place of the weight

    @property
    def packed_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.float32 if self.form == "float32" else x.dtype
        x, scales = self.inputs(x if self.order is None else x.index_select(1, self.order))
        return matmul(x, scales, self.weight, self.bias, dtype, self.form == "gated")


@impl("linear.quantized", "triton", device="cuda", dtypes=_HALF, priority=20)
def linear_quantized(weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    packed = _pack_integers(weight)
    group = weight.group if weight.bits == 4 and weight.group < weight.values.shape[1] else 0
    return PackedLinear(packed, bias, form, Rounding(torch.int8, group), weight.order)


@impl("linear.weight_only", "triton", device="cuda", dtypes=_HALF, priority=20)
def linear_weight_only(
    weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh
) -> LinearFn:
    if (weight.bits == 8 and weight.zeros is not None) or not _fits(weight.group, weight.values.shape[1]):
        return reference.linear_weight_only(weight, bias, form)
    return PackedLinear(_pack_integers(weight), bias, form, AS_THEY_ARE, weight.order)


def _fits(group: int, inner: int) -> bool:
    """Whether groups of so many inputs are made of whole steps."""
    return group >= inner or group == 32 or group % 64 == 0


def _pack_integers(weight: QuantizedWeight) -> PackedWeight:
    columns, inner = weight.values.shape
    alone = weight.group >= inner and weight.zeros is None
    step = 32 if weight.group == 32 else _WIDE_STEP if alone and weight.bits == 8 else 64
    whole = inner + -inner % (step if weight.bits == 8 else 2 * step)
    group = min(weight.group, whole)
    scales = _cover(weight.scales.t().float(), whole // group)
    if weight.bits == 8:
        values = functional.pad(weight.values.view(torch.int8) ^ -128, (0, whole - inner))
        return PackedWeight(values, scales, None, columns, inner, step, group=0 if alone else group)
    halves = functional.pad(weight.values, (0, whole - inner), value=8).view(columns, -1, 2, step)
    values = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1).view(torch.int8)
    zeros = None if weight.zeros is None else _cover(weight.zeros.t().view(torch.int8) - 8, whole // group)
    return PackedWeight(values, scales, zeros, columns, inner, step, halves=2, group=0 if alone else group)


def _cover(parts: Tensor, groups: int) -> Tensor:
    """``[G, N]`` with rows of zeros for the groups that only fill up the last step."""
    return functional.pad(parts, (0, 0, 0, max(groups - len(parts), 0))).contiguous()


@impl("linear.fp8", "triton", device="cuda", isa="sm89", dtypes=_HALF, priority=20)
def linear_fp8(weight: Float8Weight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    inner, by_row = weight.values.shape[1], weight.block[1] >= weight.values.shape[1]
    if weight.activations == "block" and weight.block[1] == 128:
        inputs = Rounding(torch.float8_e4m3fn, 128)
    elif weight.activations == "token" and by_row:
        inputs = Rounding(torch.float8_e4m3fn)
    elif weight.activations == "tensor" and by_row:
        inputs = Rounding(torch.float8_e4m3fn, static=weight.input_scale or 1.0)
    elif weight.activations == "none" and (by_row or weight.block[1] % 64 == 0):
        inputs = AS_THEY_ARE
    else:
        return reference.linear_fp8(weight, bias, form)
    step = 64 if inputs.dtype is None else _WIDE_STEP
    values = functional.pad(weight.values.view(torch.uint8), (0, -inner % step)).view(torch.float8_e4m3fn)
    scales = weight.scales.t().float() * (weight.input_scale or 1.0 if weight.activations == "tensor" else 1.0)
    group = 0 if by_row and weight.activations != "block" else weight.block[1]
    packed = PackedWeight(
        values, scales.contiguous(), None, len(values), inner, step, group=group, scale_rows=weight.block[0]
    )
    return PackedLinear(packed, bias, form, inputs)


@dataclass(frozen=True, slots=True)
class ScaledLinear:
    """A product in fp8 by torch's own kernels: a scale per row of x, or one for all, and one per output."""

    values: Tensor  # fp8 [N, K]
    scales: Tensor  # float32 [1, N]
    bias: Tensor | None
    input_scale: float | None

    @property
    def packed_bytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def packed(self) -> PackedLinear:
        """The same for `matmul`, of the same weight."""
        rows, inner = self.values.shape
        scales = self.scales if self.input_scale is None else self.scales * self.input_scale
        weight = PackedWeight(self.values, scales, None, rows, inner, _WIDE_STEP)
        return PackedLinear(weight, self.bias, "plain", Rounding(torch.float8_e4m3fn, static=self.input_scale))

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, len(self.values))
        values, scales = quantize(x, torch.float8_e4m3fn, x.shape[1], self.input_scale)
        if self.input_scale is not None:
            scales = torch.full_like(scales, self.input_scale)
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return torch._scaled_mm(values, self.values.t(), scales, self.scales, bias, out_dtype=torch.bfloat16)


@impl("linear.fp8", "scaled_mm", device="cuda", isa="sm90", dtypes=(torch.bfloat16,), priority=30)
def linear_fp8_scaled(weight: Float8Weight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    """Where torch has a kernel for it; the rest as `linear_fp8`, and scores too, which want more than bfloat16."""
    rows, inner = weight.values.shape
    by_row = weight.activations in ("token", "tensor") and weight.block[1] >= inner
    per_row = weight.block[0] == 1 or weight.block[0] >= rows
    if not by_row or not per_row or rows % 16 or inner % 16 or form == "float32":
        return linear_fp8(weight, bias, form)
    static = (weight.input_scale or 1.0) if weight.activations == "tensor" else None
    scales = weight.scales.float().expand(rows, 1).t().contiguous()
    linear = ScaledLinear(weight.values.contiguous(), scales, bias, static)
    return Gated(linear) if form == "gated" else linear
