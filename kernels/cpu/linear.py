"""Linear layers over weights packed for the C++ kernels (linear.cpp): one layout from one row to thousands."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.cpu import native
from sgl.kernels.ops.linear import (
    Allocate,
    CodedWeight,
    Float8Weight,
    Form,
    LinearFn,
    PlainLinear,
    QuantizedWeight,
    fresh,
    scale_dtype,
    shaped,
)
from sgl.kernels.registry import impl

PANEL = 64
"""Output columns of a panel."""

FORMATS = ("bf16", "int8", "int4", "float8", "code4")
SCALES = (torch.bfloat16, torch.float16, torch.float32)
ZEROS = (None, torch.uint8, torch.float32)
"""In the order of the C++ enumerations."""

_DIGITS = 3
"""Bytes that an input becomes if it is not to be rounded, see quantize.cpp."""

_MOST_SUMMED = 1 << 16
"""Products of a byte and a signed byte that fit into 32 bits together."""


class WeightStruct(ctypes.Structure):
    """Mirrors ``Weight`` of kernels.h, field by field."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inner", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("format", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("zeros", ctypes.c_int32),
        ("scales", ctypes.c_int32),
        ("digits", ctypes.c_int32),
        ("table", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class NativeLinear:
    """``y [T, N] = x [T, K] @ W.T + b`` for x in bf16; a row's result does not depend on the other rows."""

    weight: Tensor  # uint8, see linear.cpp
    bias: Tensor | None  # float32 [panels * 64]
    in_features: int
    out_features: int
    form: Form
    format: str  # one of FORMATS
    library: ctypes.CDLL
    group: int = 1  # inputs that share a scale
    zeros: torch.dtype | None = None  # of zero points, or of what is added to weights; None: they are in the middle
    scales: torch.dtype = torch.float32
    digits: int = 1  # bytes that an input becomes
    table: Tensor | None = None  # bfloat16 [16]: what codes stand for

    @property
    def packed_bytes(self) -> int:
        return self.weight.nbytes

    @cached_property
    def struct(self) -> WeightStruct:
        """What the C++ kernels take; holds addresses, so this object must outlive its use."""
        return WeightStruct(
            self.weight.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.in_features,
            self.out_features,
            FORMATS.index(self.format),
            self.group,
            ZEROS.index(self.zeros),
            SCALES.index(self.scales),
            self.digits,
            None if self.table is None else self.table.data_ptr(),
        )

    @cached_property
    def scratch_bytes(self) -> int:
        """What the kernels need for every row beside input and output: the row in integers, its scales and sums."""
        return int(self.library.sgl_activation_bytes(ctypes.byref(self.struct)))

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, width = x.shape[0], self.out_features // 2 if self.form == "gated" else self.out_features
        y = torch.empty(rows, width, dtype=torch.float32 if self.form == "float32" else torch.bfloat16)
        scratch = torch.empty(rows * self.scratch_bytes, dtype=torch.uint8)
        operands = (ctypes.byref(self.struct), x.data_ptr(), rows, scratch.data_ptr(), y.data_ptr())
        if self.form == "float32":
            self.library.sgl_linear_f32(*operands)
        else:
            self.library.sgl_linear(*operands, 2 if self.form == "gated" else 0)
        return y


@dataclass(frozen=True)
class Reordered:
    """A linear layer whose inputs are taken in an order of their own."""

    linear: NativeLinear
    order: Tensor  # int64 [K]

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes + self.order.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x.index_select(1, self.order))


@impl("linear", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear(weight: Tensor, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    inner = weight.shape[1]
    if inner % 2:
        return shaped(PlainLinear(weight, bias), form)
    columns, library = weight.shape[0], native.library()
    weight, order = weight.contiguous(), torch.arange(columns)
    if form == "gated":
        order, bias = _interleave(order + 1) - 1, None if bias is None else _interleave(bias)
    panels = _panels(order)
    packed = allocate(panels * PANEL * inner * 2)
    library.sgl_pack_bf16(weight.data_ptr(), order.data_ptr(), len(order), inner, packed.data_ptr())
    return NativeLinear(packed, _padded(bias, panels), inner, columns, form, "bf16", library)


@impl("linear.quantized", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear_quantized(weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    return _integers(weight, bias, form, allocate, digits=1)


@impl("linear.weight_only", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear_weight_only(
    weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh
) -> LinearFn:
    inner = weight.values.shape[1]
    ends_within_word = weight.group < inner and weight.group % (32 // weight.bits)
    if ends_within_word or min(weight.group, inner) > _MOST_SUMMED:
        return linear(weight.dequantize().bfloat16(), bias, form, allocate)
    return _integers(weight, bias, form, allocate, _DIGITS)


@impl("weight.round", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def round_weight(weight: Tensor, bits: Literal[4, 8], group: int) -> QuantizedWeight:
    (rows, inner), weight = weight.shape, weight.contiguous()
    values = torch.empty(rows, inner, dtype=torch.uint8)
    scales = torch.empty(rows, -(-inner // group))
    native.library().sgl_round(weight.data_ptr(), rows, inner, bits, group, values.data_ptr(), scales.data_ptr())
    return QuantizedWeight(values, scales, None, bits, group)


def _integers(weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate, digits: int) -> LinearFn:
    inner, is_whole = weight.values.shape[1], weight.group >= weight.values.shape[1]
    step = 64 if weight.bits == 4 else 4
    group = -(-inner // step) * step if is_whole else weight.group
    zeros = weight.zeros if weight.offsets is None else weight.offsets
    scales = weight.scales.to((not is_whole and scale_dtype(weight.scales)) or torch.float32)
    prepared = _packed(f"int{weight.bits}", weight.values, scales, group, bias, form, allocate, zeros, digits=digits)
    return prepared if weight.order is None else Reordered(prepared, weight.order)


@impl("linear.coded", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def linear_coded(
    weight: Float8Weight | CodedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh
) -> LinearFn:
    if isinstance(weight, Float8Weight):
        values, scales = weight.values.view(torch.uint8), weight.per_row().scales
        return _packed("float8", values, scales, min(weight.block[1], values.shape[1]), bias, form, allocate)
    (table, factor), group = _table(weight.table), min(weight.group, weight.codes.shape[1])
    return _packed("code4", weight.codes, weight.scales / factor, group, bias, form, allocate, table=table)


def _table(numbers: Tensor) -> tuple[Tensor, float]:
    """Numbers in bfloat16, times the factor from 1 to 2 by which the products are closest to what bfloat16 holds."""
    factors = 1 + torch.arange(1024, dtype=torch.float64) / 1024
    products = numbers.double() * factors[:, None]
    errors = (products.bfloat16().double() - products) / factors[:, None]
    best = int(errors.square().sum(1).argmin())
    return products[best].bfloat16(), float(factors[best])


def _packed(
    format: str,
    values: Tensor,
    scales: Tensor,
    group: int,
    bias: Tensor | None,
    form: Form,
    allocate: Allocate,
    zeros: Tensor | None = None,
    digits: int = 1,
    table: Tensor | None = None,
) -> NativeLinear:
    """Values uint8 ``[N, K]`` of 8 or 4 bits with scales and what stands beside them, ``[N, G]``, in panels."""
    (columns, inner), bits = values.shape, 4 if format.endswith("4") else 8
    if form == "gated":
        values, scales = _interleave(values), _interleave(scales)
        zeros, bias = (None if part is None else _interleave(part) for part in (zeros, bias))
    values, scales, zeros = values.contiguous(), scales.contiguous(), None if zeros is None else zeros.contiguous()
    library, panels = native.library(), _panels(values)
    beside = scales.itemsize + (0 if zeros is None else zeros.itemsize)
    packed = allocate(panels * PANEL * scales.shape[1] * (group * bits // 8 + beside))
    prepared = NativeLinear(
        packed,
        _padded(bias, panels),
        inner,
        columns,
        form,
        format,
        library,
        group,
        zeros=None if zeros is None else zeros.dtype,
        scales=scales.dtype,
        digits=digits,
        table=table,
    )
    struct = WeightStruct.from_buffer_copy(prepared.struct)
    struct.columns = len(values)  # of gates and ups with what fills them up
    tensors = (values.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(), packed.data_ptr())
    library.sgl_pack_groups(ctypes.byref(struct), *tensors)
    return prepared


def _panels(weight: Tensor) -> int:
    return -(-weight.shape[0] // PANEL)


def _padded(bias: Tensor | None, panels: int) -> Tensor | None:
    return None if bias is None else functional.pad(bias.float(), (0, panels * PANEL - bias.shape[0]))


def _interleave(rows: Tensor) -> Tensor:
    """Gates and ups that belong together come to stand in one panel, 32 of each; the last is filled up with zeros."""
    half, block = rows.shape[0] // 2, PANEL // 2
    filling = rows.new_zeros(-half % block, *rows.shape[1:])
    gate, up = (torch.cat((part, filling)).view(-1, block, *rows.shape[1:]) for part in (rows[:half], rows[half:]))
    return torch.cat((gate, up), 1).flatten(0, 1)
