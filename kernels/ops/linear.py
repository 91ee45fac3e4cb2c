"""A linear layer as a function of its input, prepared once from its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.activation import silu_mul
from sgl.kernels.registry import op

Form = Literal["plain", "gated", "float32"]
"""What becomes of a product: nothing; ``silu(gate) * up``, half as wide, of gates that stand before ups; or a result in
float32, for the scores of tokens, among which ties should be rare."""


Allocate = Callable[[int], Tensor]
"""Where a packed weight goes: so many bytes, uint8, of any content, that begin at a multiple of 64."""


def fresh(size_bytes: int) -> Tensor:
    """Memory of its own."""
    return torch.empty(size_bytes, dtype=torch.uint8)


class LinearFn(Protocol):
    """``y [T, N] = x [T, K] @ weight.T + bias`` for a weight that was given once, in some `Form`."""

    @property
    def packed_bytes(self) -> int:
        """Memory of its own copy of the weight; 0 where it uses the tensor that it was given."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PlainLinear:
    weight: Tensor
    bias: Tensor | None
    packed_bytes: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """``silu(gate) * up`` of a linear layer that computes both side by side."""

    linear: LinearFn

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(self.linear(x))


@dataclass(frozen=True, slots=True)
class Float32Linear:
    """A linear layer whose result is converted to float32."""

    linear: LinearFn

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x).float()


def shaped(linear: LinearFn, form: Form) -> LinearFn:
    """A plain linear layer with what its form asks for behind it."""
    return GatedLinear(linear) if form == "gated" else Float32Linear(linear) if form == "float32" else linear


@op("linear")
def linear(weight: Tensor, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    """Prepares weight ``[N, K]`` and bias ``[N]``; the caller drops them unless it shares them."""
    return shaped(PlainLinear(weight, bias), form)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """``W [N, K] = (values - zeros) * scales``, with one scale and zero point for ``group`` inputs of an output. Where
    there are offsets, it is ``values * scales + offsets``.

    Integer products want the input as integers too: every ``group`` of a row is rounded to multiples of its greatest
    magnitude / 127. With 8 bits the group is the whole row (W8A8 with dynamic scales per token, as in LLM.int8,
    Dettmers 2022, without its outlier columns); with 4 bits it is the weights' own, as in llama.cpp.
    """

    values: Tensor  # uint8 [N, K], 0 .. 2^bits - 1
    scales: Tensor  # float32 [N, G]
    zeros: Tensor | None  # uint8 [N, G]; None: all are 2^(bits - 1)
    bits: Literal[4, 8]
    group: int  # inputs; the last group may be shorter
    order: Tensor | None = None  # int64 [K]: the input that stands at each place of ``values``; None: its own
    weight_only: bool = False  # the format leaves the inputs as they are
    offsets: Tensor | None = None  # float32 [N, G], in place of zero points

    @property
    def fits_integer_products(self) -> bool:
        """Whether `linear.quantized` computes with it: 8 bits with a scale per output, 4 bits by group."""
        if self.bits == 8:
            is_plain = self.zeros is None and self.order is None and self.offsets is None
            return is_plain and self.group >= self.values.shape[1]
        return self.group >= self.values.shape[1] or self.group == 32 or self.group % 64 == 0

    @property
    def fits_wide_steps(self) -> bool:
        """Whether kernels that take many inputs at a time compute with it; they know zero points in 4 bits only."""
        is_wide = self.group >= self.values.shape[1] or self.group == 32 or self.group % 64 == 0
        return is_wide and self.offsets is None and (self.zeros is None or self.bits == 4)

    def dequantize(self) -> Tensor:
        """The weight in float32 ``[N, K]``."""
        inner = self.values.shape[1]
        weight = self.values.float()
        if self.offsets is None:
            weight -= 1 << self.bits - 1 if self.zeros is None else _spread(self.zeros.float(), self.group, inner)
        weight *= _spread(self.scales, self.group, inner)
        if self.offsets is not None:
            weight += _spread(self.offsets, self.group, inner)
        return weight if self.order is None else weight[:, torch.argsort(self.order)]


Activations = Literal["none", "token", "tensor", "block"]
"""How a format rounds inputs to fp8: not at all; by a scale per row; by the stored one; by one per 128 inputs of a
row."""


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """``W [N, K] = values * scales`` in fp8 (e4m3), a scale for every block of outputs and inputs."""

    values: Tensor  # float8_e4m3fn [N, K]
    scales: Tensor  # float32 [blocks of N, blocks of K]
    block: tuple[int, int]  # outputs and inputs that share a scale; the last ones may be fewer
    activations: Activations = "none"
    input_scale: float | None = None  # with activations "tensor"
    bits: ClassVar[int] = 8

    @property
    def fits_coded_products(self) -> bool:
        """Whether `linear.coded` computes with it."""
        return _fits_coded_products(self.values.shape[1], self.block[1], self.bits)

    def per_row(self) -> Float8Weight:
        """The same with scales for every row."""
        rows, height = self.values.shape[0], self.block[0]
        scales = self.scales.repeat_interleave(min(height, rows), 0)[:rows]
        return replace(self, scales=scales, block=(1, self.block[1]))

    def dequantize(self) -> Tensor:
        """The weight in float32 ``[N, K]``."""
        rows, inner = self.values.shape
        scales = _spread(_spread(self.scales.t(), self.block[0], rows).t(), self.block[1], inner)
        return self.values.float().mul_(scales)


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """``W [N, K] = table[codes] * scales`` with sixteen numbers in the table and a scale for ``group`` inputs."""

    codes: Tensor  # uint8 [N, K], 0 .. 15
    table: Tensor  # float32 [16]
    scales: Tensor  # float32 [N, G]
    group: int  # inputs; the last group may be shorter
    bits: ClassVar[int] = 4

    @property
    def fits_coded_products(self) -> bool:
        """Whether `linear.coded` computes with it."""
        return _fits_coded_products(self.codes.shape[1], self.group, self.bits)

    def dequantize(self) -> Tensor:
        """The weight in float32 ``[N, K]``."""
        inner = self.codes.shape[1]
        return self.table[self.codes.int()].mul_(_spread(self.scales, self.group, inner))


def _fits_coded_products(inner: int, group: int, bits: int) -> bool:
    """Rows of whole words of 32 bits; scales for a whole row, or for whole steps of tiles (32 inputs)."""
    return inner % (32 // bits) == 0 and (group >= inner or group % 32 == 0)


@dataclass(frozen=True, slots=True)
class DecodedWeight:
    """A weight in a format whose numbers no kernel takes: read out exactly."""

    values: Tensor  # float32 [N, K]
    bits: int  # of a stored number, rounded up

    def dequantize(self) -> Tensor:
        return self.values


StoredWeight = QuantizedWeight | Float8Weight | CodedWeight | DecodedWeight
Weight = Tensor | StoredWeight
"""What a linear layer may be prepared from."""


def is_finite(weight: StoredWeight) -> bool:
    """Whether all scales and offsets, or all numbers of a weight without scales, are numbers."""
    numbers = [weight.values if isinstance(weight, DecodedWeight) else weight.scales]
    if isinstance(weight, QuantizedWeight) and weight.offsets is not None:
        numbers.append(weight.offsets)
    return all(bool(torch.isfinite(part).all()) for part in numbers)


def dequantized(weight: Weight) -> Tensor:
    """The numbers of a weight ``[N, K]``; float32 unless it is a tensor already."""
    return weight if isinstance(weight, Tensor) else weight.dequantize()


def scale_dtype(scales: Tensor) -> torch.dtype | None:
    """The 16-bit type that holds scales exactly, if there is one."""
    exact = (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(scales.to(dtype).float(), scales))
    return next(exact, None)


def stacked(parts: Sequence[StoredWeight]) -> StoredWeight:
    """One weight of the rows of several: in the form that they share, or decoded if they share none."""
    first = parts[0]
    if len(parts) == 1:
        return first
    whole: StoredWeight | None = None
    if isinstance(first, QuantizedWeight):
        whole = _stacked_integers([part for part in parts if isinstance(part, QuantizedWeight)], len(parts))
    elif isinstance(first, Float8Weight):
        whole = _stacked_floats([part for part in parts if isinstance(part, Float8Weight)], len(parts))
    elif isinstance(first, CodedWeight):
        whole = _stacked_codes([part for part in parts if isinstance(part, CodedWeight)], len(parts))
    return whole or DecodedWeight(torch.cat([part.dequantize() for part in parts]), max(part.bits for part in parts))


def _stacked_integers(parts: list[QuantizedWeight], count: int) -> QuantizedWeight | None:
    first = parts[0]
    if len(parts) < count or any(
        (part.bits, part.group, part.weight_only) != (first.bits, first.group, first.weight_only)
        or (part.offsets is None) != (first.offsets is None)
        or not _same(part.order, first.order)
        for part in parts
    ):
        return None
    zeros = None
    if any(part.zeros is not None for part in parts):
        middle = 1 << first.bits - 1
        points = (
            torch.full_like(part.scales, middle, dtype=torch.uint8) if part.zeros is None else part.zeros
            for part in parts
        )
        zeros = torch.cat(list(points))
    values, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "scales"))
    given = [part.offsets for part in parts if part.offsets is not None]
    return replace(first, values=values, scales=scales, zeros=zeros, offsets=torch.cat(given) if given else None)


def _stacked_floats(parts: list[Float8Weight], count: int) -> Float8Weight | None:
    """Scales per tensor become scales per row, so that parts keep their own."""
    if len(parts) < count or any(part.activations != parts[0].activations for part in parts):
        return None
    parts = [part.per_row() if part.block[0] >= part.values.shape[0] else part for part in parts]
    first = parts[0]
    whole_blocks = all(part.values.shape[0] % part.block[0] == 0 for part in parts[:-1])
    if not whole_blocks or any(part.block != first.block for part in parts):
        return None
    values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    given = [part.input_scale for part in parts if part.input_scale is not None]
    scales = torch.cat([part.scales for part in parts])
    return replace(first, values=values, scales=scales, input_scale=max(given) if given else None)


def _stacked_codes(parts: list[CodedWeight], count: int) -> CodedWeight | None:
    first = parts[0]
    if len(parts) < count or any(
        part.group != first.group or not torch.equal(part.table, first.table) for part in parts
    ):
        return None
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    return replace(first, codes=codes, scales=scales)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def arranged(weight: Weight, arrange: Callable[[Tensor], Tensor]) -> Weight:
    """A weight whose rows are moved by a function of tensors with as many rows."""
    if isinstance(weight, QuantizedWeight):
        zeros, offsets = (None if part is None else arrange(part) for part in (weight.zeros, weight.offsets))
        values, scales = arrange(weight.values), arrange(weight.scales)
        return replace(weight, values=values, scales=scales, zeros=zeros, offsets=offsets)
    if isinstance(weight, CodedWeight):
        return replace(weight, codes=arrange(weight.codes), scales=arrange(weight.scales))
    if isinstance(weight, Float8Weight):  # blocks may be torn apart
        weight = weight.per_row()
        values = arrange(weight.values.view(torch.uint8)).view(torch.float8_e4m3fn)
        return replace(weight, values=values, scales=arrange(weight.scales))
    return arrange(weight) if isinstance(weight, Tensor) else replace(weight, values=arrange(weight.values))


def _spread(parts: Tensor, size: int, count: int) -> Tensor:
    """``[R, G]`` -> ``[R, count]``, every column ``size`` times; a single column is left to broadcasting."""
    return parts if parts.shape[1] == 1 else parts.repeat_interleave(size, 1)[:, :count]


def quantize_rows(x: Tensor, group: int) -> Tensor:
    """x ``[T, K]`` as the integer products see it: float32 multiples of every group's greatest magnitude / 127."""
    groups = functional.pad(x.float(), (0, -x.shape[1] % group)).view(x.shape[0], -(-x.shape[1] // group), group)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale > 0, groups / scale, 0).round()
    rounded: Tensor = (steps * scale).flatten(1)[:, : x.shape[1]]
    return rounded


@dataclass(frozen=True, slots=True)
class RoundedLinear:
    """Computes in float32 with a dequantized weight, and with inputs rounded as a kernel rounds them."""

    weight: Tensor  # float32 [N, K]
    bias: Tensor | None
    rounded: Callable[[Tensor], Tensor]

    @property
    def packed_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(self.rounded(x), self.weight, bias).to(x.dtype)


@op("linear.quantized")
def linear_quantized(weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    """As `linear` for a quantized weight, whose inputs are rounded as it says; it must fit integer products."""

    def rounded(x: Tensor) -> Tensor:
        if weight.order is None:
            return quantize_rows(x, weight.group)
        return quantize_rows(x[:, weight.order], weight.group)[:, torch.argsort(weight.order)]

    return shaped(RoundedLinear(weight.dequantize(), bias, rounded), form)


@op("linear.weight_only")
def linear_weight_only(
    weight: QuantizedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh
) -> LinearFn:
    """As `linear` for a quantized weight of any group, whose inputs stay what they are."""
    return shaped(RoundedLinear(weight.dequantize(), bias, Tensor.float), form)


FP8_MAX = 448.0
"""The greatest number of e4m3."""


def float8_rows(x: Tensor, activations: Activations, input_scale: float | None = None) -> Tensor:
    """x ``[T, K]`` as products in fp8 see it: float32 multiples of the scales that `Activations` tells of."""
    x = x.float()
    if activations == "none":
        return x
    group = 128 if activations == "block" else x.shape[1]
    groups = functional.pad(x, (0, -x.shape[1] % group)).view(x.shape[0], -(-x.shape[1] // group), group)
    if activations == "tensor":
        scale = torch.full((1, 1, 1), input_scale or 1.0, device=x.device)
    else:
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    steps = (groups / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
    rounded: Tensor = (steps * scale).flatten(1)[:, : x.shape[1]]
    return rounded


@op("linear.fp8")
def linear_fp8(weight: Float8Weight, bias: Tensor | None, form: Form, allocate: Allocate = fresh) -> LinearFn:
    """As `linear` for a weight in fp8, whose inputs are rounded as it says."""

    def rounded(x: Tensor) -> Tensor:
        return float8_rows(x, weight.activations, weight.input_scale)

    return shaped(RoundedLinear(weight.dequantize(), bias, rounded), form)


@op("linear.coded")
def linear_coded(
    weight: Float8Weight | CodedWeight, bias: Tensor | None, form: Form, allocate: Allocate = fresh
) -> LinearFn:
    """As `linear` for a weight in fp8 or codes, whose inputs stay what they are, whatever the format says of them. It
    must fit coded products and hold no NaN, which kernels may read out as a number; loading refuses such a weight.
    """
    return shaped(RoundedLinear(weight.dequantize(), bias, Tensor.float), form)
