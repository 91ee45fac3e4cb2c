"""Products of blocks of rows with the weights of their experts, which lie anywhere: all blocks in one launch.

Weights in floating point and packed ones have a kernel each; which rows are together is decided in `grouping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.linear import FP8_MAX, GatedLinear, LinearFn, PlainLinear
from sgl.kernels.triton.activation import silu, silu_mul
from sgl.kernels.triton.device import Block, Pointer, Scalar, dot, fp8
from sgl.kernels.triton.grouping import Blocks
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.linear import Gated, PackedLinear, Rounding, ScaledLinear
from sgl.kernels.triton.matmul import PackedWeight, add_product
from sgl.kernels.triton.shapes import cdiv

_STEP = 64
_FP8_MAX = tl.constexpr(FP8_MAX)
_TYPES = {torch.int8: tl.int8, torch.float8_e4m3fn: tl.float8e4nv}


class Product(Protocol):
    """``[R, K] -> [pairs, N]``: row ``pair // shared`` times the weight of the pair's expert."""

    def __call__(self, x: Tensor, blocks: Blocks, shared: int) -> Tensor: ...


@triton.jit
def _weights(weight: Pointer, row: Block, k: Block, rows: Scalar, inner: Scalar) -> Block:
    """``[STEP, COLUMNS]`` of an expert's ``[N, K]``."""
    return tl.load(weight + row[None, :] * inner + k[:, None], (row < rows)[None, :] & (k < inner)[:, None], 0.0)


@bound
@triton.jit(do_not_specialize=["pairs"])
def _grouped_kernel(
    x: Pointer,
    addresses: Pointer,
    places: Pointer,
    owners: Pointer,
    out: Pointer,
    experts: Scalar,
    pairs: Scalar,
    columns: Scalar,
    inner: Scalar,
    shared: Scalar,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """A block of rows and of columns; row of x ``pair // shared``, row of out ``pair``. Gates stand before ups."""
    block, tile = tl.program_id(0), tl.program_id(1)
    owner = tl.load(owners + block)
    if owner < experts:
        pair = tl.load(places + block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        present = pair < pairs
        source, column = x + (pair // shared)[:, None] * inner, tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        weight = tl.multiple_of(tl.load(addresses + owner).to(tl.pointer_type(x.dtype.element_ty)), 16)
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        ups = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(0, inner, STEP):
            k = at + tl.arange(0, STEP)
            inputs = tl.load(source + k[None, :], present[:, None] & (k < inner)[None, :], 0.0)
            acc = dot(inputs, _weights(weight, column, k, columns, inner), acc)
            if GATED:
                ups = dot(inputs, _weights(weight + columns * inner, column, k, columns, inner), ups)
        if GATED:
            acc = silu(acc) * ups
        place = out + pair[:, None] * columns + column[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), present[:, None] & (column < columns)[None, :])


@dataclass(frozen=True, slots=True)
class PlainProduct:
    """Of weights as they are."""

    weights: Sequence[Tensor]  # [N, K] per expert
    gated: bool
    addresses: Tensor  # int64 [E]

    def __call__(self, x: Tensor, blocks: Blocks, shared: int) -> Tensor:
        columns = self.weights[0].shape[0] // (2 if self.gated else 1)
        out = torch.empty(blocks.pairs, columns, dtype=x.dtype, device=x.device)
        tile = 64 if self.gated or blocks.rows <= 32 else 128
        _grouped_kernel[(len(blocks.owners), cdiv(columns, tile))](
            *(x, self.addresses, blocks.places, blocks.owners, out),
            *(len(self.weights), blocks.pairs, columns, x.shape[1], shared),
            GATED=self.gated,
            ROWS=blocks.rows,
            COLUMNS=tile,
            STEP=_STEP,
            num_warps=8 if blocks.rows >= 128 else 4,
            num_stages=3,
        )
        return out


@bound
@triton.jit(do_not_specialize=["pairs"])
def _packed_kernel(
    x: Pointer,
    x_scales: Pointer,
    weights: Pointer,
    scales: Pointer,
    zeros: Pointer,
    statics: Pointer,
    places: Pointer,
    owners: Pointer,
    out: Pointer,
    experts: Scalar,
    pairs: Scalar,
    columns: Scalar,
    inner: Scalar,
    x_stride: Scalar,
    w_stride: Scalar,
    groups: Scalar,
    scale_columns: Scalar,
    shared: Scalar,
    TYPE: tl.constexpr,
    FLOAT: tl.constexpr,
    STATIC: tl.constexpr,
    HALVES: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_X_SCALES: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """As `_matmul_kernel` of a block of rows; ``weights``, ``scales`` and ``zeros`` are addresses of every expert's.

    A pair beyond the last stands behind the last row of x, too.
    """
    block, tile = tl.program_id(0), tl.program_id(1)
    owner = tl.load(owners + block)
    if owner < experts:
        pair = tl.load(places + block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        m, rows = pair // shared, pairs // shared
        n = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        w = tl.multiple_of(tl.load(weights + owner).to(tl.pointer_type(TYPE)), 16)
        w_scales = tl.load(scales + owner).to(tl.pointer_type(tl.float32))
        points = tl.load(zeros + owner).to(tl.pointer_type(tl.int8))
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(w_stride, STEP)):
            byte = step * STEP + tl.arange(0, STEP)
            within = (n < columns)[None, :] & (byte < w_stride)[:, None]
            stored = tl.load(w + n[None, :] * w_stride + byte[:, None], within, 0.0)
            for half in tl.static_range(HALVES):
                values = stored if HALVES == 1 else ((stored >> (4 * half)) & 15) - 8
                at = (step * HALVES + half) * STEP
                k = at + tl.arange(0, STEP)
                present = (m < rows)[:, None] & (k < inner)[None, :]
                inputs = tl.load(x + m[:, None] * x_stride + k[None, :], present, 0.0)
                if STATIC:
                    steps = tl.div_rn(inputs.to(tl.float32), tl.load(statics + owner))
                    inputs = fp8(tl.minimum(tl.maximum(steps, -_FP8_MAX), _FP8_MAX))
                acc = add_product(
                    acc,
                    inputs,
                    x_scales,
                    w_scales,
                    points,
                    values,
                    m,
                    n,
                    at,
                    rows,
                    columns,
                    groups,
                    scale_columns,
                    FLOAT,
                    GROUP,
                    SCALE_ROWS,
                    HAS_ZEROS,
                )
        if GROUP == 0:
            acc *= tl.load(w_scales + n // SCALE_ROWS, n < columns, 0.0)[None, :]
            if HAS_X_SCALES:
                acc *= tl.load(x_scales + m, m < rows, 0.0)[:, None]
        place = out + pair[:, None] * columns + n[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), (m < rows)[:, None] & (n < columns)[None, :])


@dataclass(frozen=True, slots=True)
class PackedProduct:
    """Of packed weights that are alike in all but their numbers."""

    weights: Sequence[PackedWeight]
    gated: bool
    inputs: Rounding  # of all experts; a static scale is each one's own
    values: Tensor  # int64 [E], addresses
    scales: Tensor
    zeros: Tensor
    statics: Tensor  # float32 [E], what the inputs of an expert are divided by

    def __call__(self, x: Tensor, blocks: Blocks, shared: int) -> Tensor:
        weight, is_static = self.weights[0], self.inputs.static is not None
        rounded, x_scales = (x, None) if is_static else self.inputs(x)
        columns, w_stride = weight.columns, weight.values.shape[1]
        out = torch.empty(blocks.pairs, columns, dtype=x.dtype, device=x.device)
        tile = 64 if blocks.rows <= 32 else 128
        _packed_kernel[(len(blocks.owners), cdiv(columns, tile))](
            *(rounded, self.statics if x_scales is None else x_scales, self.values, self.scales, self.zeros),
            *(self.statics, blocks.places, blocks.owners, out),
            *(len(self.weights), blocks.pairs, columns, weight.inner, rounded.stride(0), w_stride),
            *(1 if x_scales is None else x_scales.shape[1], weight.scales.shape[1], shared),
            TYPE=_TYPES[weight.values.dtype],
            FLOAT=self.inputs.dtype is None,
            STATIC=is_static,
            HALVES=weight.halves,
            GROUP=weight.group,
            SCALE_ROWS=weight.scale_rows,
            HAS_ZEROS=weight.zeros is not None,
            HAS_X_SCALES=x_scales is not None,
            STEP=weight.step,
            ROWS=blocks.rows,
            COLUMNS=tile,
            num_warps=8 if blocks.rows >= 128 else 4,
            num_stages=3,
        )
        return silu_mul(out) if self.gated else out


def joined(linears: Sequence[LinearFn], gated: bool) -> Product | None:
    """The layers of all experts in one launch; None where they are not stored alike."""
    plain = [_plain(linear, gated) for linear in linears]
    weights = [weight for weight in plain if weight is not None]
    if len(weights) == len(linears):
        return PlainProduct(weights, gated, _addresses(weights))
    packed = [_packed(linear, gated) for linear in linears]
    layers = [layer for layer in packed if layer is not None]
    if len(layers) < len(linears) or any(_kind(layer) != _kind(layers[0]) for layer in layers):
        return None
    own = [layer.weight for layer in layers]
    zeros = [weight.values if weight.zeros is None else weight.zeros for weight in own]
    statics = [layer.inputs.static or 1.0 for layer in layers]
    return PackedProduct(
        own,
        gated,
        layers[0].inputs,
        _addresses([weight.values for weight in own]),
        _addresses([weight.scales for weight in own]),
        _addresses(zeros),
        torch.tensor(statics, dtype=torch.float32, device=own[0].values.device),
    )


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=tensors[0].device)


def _plain(linear: LinearFn, gated: bool) -> Tensor | None:
    """The weight of a layer that is nothing else."""
    if gated:
        return _plain(linear.linear, False) if isinstance(linear, (Gated, GatedLinear)) else None
    if isinstance(linear, PlainLinear) and linear.bias is None and linear.weight.is_contiguous():
        return linear.weight
    return None


def _packed(linear: LinearFn, gated: bool) -> PackedLinear | None:
    """A layer with a packed weight and nothing beside it."""
    if isinstance(linear, PackedLinear):
        is_bare = linear.bias is None and linear.order is None
        return linear if is_bare and linear.form == ("gated" if gated else "plain") else None
    if gated:
        return _packed(linear.linear, False) if isinstance(linear, Gated) else None
    return linear.packed() if isinstance(linear, ScaledLinear) and linear.bias is None else None


def _kind(layer: PackedLinear) -> tuple[object, ...]:
    """What must be alike: all but numbers and where they are."""
    weight, inputs = layer.weight, layer.inputs
    shapes = [tensor if tensor is None else (tensor.shape, tensor.dtype) for tensor in _tensors(weight)]
    sizes = (weight.columns, weight.inner, weight.step, weight.halves, weight.group, weight.scale_rows)
    return (*shapes, *sizes, inputs.static is None, replace(inputs, static=None))


def _tensors(weight: PackedWeight) -> tuple[Tensor | None, ...]:
    return weight.values, weight.scales, weight.zeros
