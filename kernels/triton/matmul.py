"""Products with quantized weights on tensor cores: one kernel for all formats, and the sum of what it split.

A weight is ``[N, K]`` in bytes, inputs side by side. In four bits a byte holds two inputs that stand half a step apart:
its low half belongs to the first half of a step, its high half to the second, so that nothing has to be interleaved.
Few rows are bound by how fast weights arrive: there the inputs are split, so that all of the GPU takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.triton.activation import silu, silu_mul
from sgl.kernels.triton.device import Block, Pointer, Scalar, dot
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_PROGRAMS = 264  # that keep a large GPU busy: two for every multiprocessor of an H100 or H200
_MIN_STEPS = 4  # of a split, below which its partial sums cost more than they bring
_COLUMNS = 512


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut up."""

    rows: int
    columns: int
    splits: int
    warps: int
    stages: int


def tiles_for(rows: int, columns: int, steps: int) -> Tiles:
    """By the shape alone, so that no first request waits for a search."""
    if rows > 64:
        return Tiles(128, 128, 1, 8, 3)
    height = max(16, padded(rows))
    programs = cdiv(columns, 64)
    splits = max(1, min(cdiv(_PROGRAMS, programs), steps // _MIN_STEPS))
    return Tiles(height, 64, splits, 4, 4)


@triton.jit
def add_product(
    acc: Block,
    inputs: Block,
    x_scales: Pointer,
    w_scales: Pointer,
    zeros: Pointer,
    values: Block,
    m: Block,
    n: Block,
    at: Scalar,
    rows: Scalar,
    columns: Scalar,
    groups: Scalar,
    scale_columns: Scalar,
    FLOAT: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
) -> Block:
    """Adds the product of a step's ``inputs`` and ``values``, ``[M, K]`` and ``[K, N]``, which begin at input ``at``.

    Scales of the inputs are those of rows ``m`` of ``rows``.
    """
    if GROUP == 0:
        if FLOAT:
            acc = dot(inputs, values, acc)
        else:  # tensor cores sum fp8 in fewer bits than float32 has: not over more than a step
            acc += tl.dot(inputs, values, max_num_imprecise_acc=inputs.shape[1]).to(tl.float32)
    else:
        group = at // GROUP
        if HAS_ZEROS:
            values -= tl.load(zeros + group * columns + n, n < columns, 0)[None, :]
        scale = tl.load(w_scales + group * scale_columns + n // SCALE_ROWS, n < columns, 0.0)[None, :]
        if FLOAT:
            acc += dot(inputs, values, tl.zeros_like(acc)) * scale
        else:
            x_scale = tl.load(x_scales + m * groups + group, (m < rows) & (group < groups), 0.0)[:, None]
            acc += tl.dot(inputs, values).to(tl.float32) * scale * x_scale
    return acc


@bound
@triton.jit(do_not_specialize=["rows", "steps"])
def _matmul_kernel(
    x: Pointer,
    x_scales: Pointer,
    w: Pointer,
    w_scales: Pointer,
    zeros: Pointer,
    bias: Pointer,
    out: Pointer,
    rows: Scalar,
    columns: Scalar,
    inner: Scalar,
    x_stride: Scalar,
    w_stride: Scalar,
    groups: Scalar,
    scale_columns: Scalar,
    steps: Scalar,
    FLOAT: tl.constexpr,
    HALVES: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_X_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Split s computes ``steps`` steps and writes to ``out[s]``; GROUP 0 is one scale per row, for all inputs."""
    tall = tl.cdiv(rows, ROWS)
    tile, split = tl.program_id(0), tl.program_id(1)
    m = (tile % tall).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = (tile // tall).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, STEP)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(split * steps, tl.minimum((split + 1) * steps, w_stride // STEP)):
        stored = tl.load(w + n[None, :] * w_stride + (step * STEP + lane)[:, None], (n < columns)[None, :], 0.0)
        for half in tl.static_range(HALVES):
            values = stored if HALVES == 1 else ((stored >> (4 * half)) & 15) - 8
            at = (step * HALVES + half) * STEP
            k = at + lane
            inputs = tl.load(x + m[:, None] * x_stride + k[None, :], (m < rows)[:, None] & (k < inner)[None, :], 0.0)
            acc = add_product(
                acc,
                inputs,
                x_scales,
                w_scales,
                zeros,
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
    if HAS_BIAS:
        acc += tl.load(bias + n, n < columns, 0.0).to(tl.float32)[None, :]
    place = out + (split * rows + m)[:, None] * columns + n[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), (m < rows)[:, None] & (n < columns)[None, :])


@triton.jit
def _sum(
    parts: Pointer,
    bias: Pointer,
    place: Block,
    column: Block,
    inside: Block,
    stride: Scalar,
    splits: Scalar,
    HAS_BIAS: tl.constexpr,
) -> Block:
    total = tl.zeros_like(place).to(tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * stride + place, inside, 0.0)
    if HAS_BIAS:
        total += tl.load(bias + column, inside, 0.0).to(tl.float32)
    return total


@bound
@triton.jit(do_not_specialize=["rows", "splits"])
def _finish_kernel(
    parts: Pointer,
    bias: Pointer,
    out: Pointer,
    rows: Scalar,
    columns: Scalar,
    splits: Scalar,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = columns // 2 if GATED else columns
    inside, place = column < width, row * columns + column
    result = _sum(parts, bias, place, column, inside, rows * columns, splits, HAS_BIAS)
    if GATED:
        up = _sum(parts, bias, place + width, column + width, inside, rows * columns, splits, HAS_BIAS)
        result = silu(result) * up
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), inside)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight ``[N, K]`` as `_matmul_kernel` reads it."""

    values: Tensor  # int8 or fp8 [N, bytes of a row, a multiple of step]
    scales: Tensor  # float32 [G or more, N / scale_rows]; one group for all inputs if group is 0
    zeros: Tensor | None  # int8 [G or more, N], in four bits and less 8
    columns: int
    inner: int
    step: int  # bytes of a row that are multiplied at a time
    halves: int = 1  # inputs in a byte
    group: int = 0  # inputs that share a scale, a multiple of step
    scale_rows: int = 1  # outputs that do

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def matmul(
    x: Tensor, x_scales: Tensor | None, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, gated: bool
) -> Tensor:
    """``x @ weight.T + bias``, and ``silu(gate) * up`` of it if gated.

    Args:
        x: ``[T, K]``: as it is, or in eight bits.
        x_scales: float32 ``[T, G]`` of x in eight bits; None if the scales of the weight hold them.
        dtype: of the result.
    """
    rows, columns, w_stride = x.shape[0], weight.columns, weight.values.shape[1]
    tiles = tiles_for(rows, columns, w_stride // weight.step)
    alone = tiles.splits == 1
    shape = (tiles.splits, rows, columns)
    out = torch.empty(shape, dtype=dtype if alone else torch.float32, device=x.device)
    groups = 1 if x_scales is None else x_scales.shape[1]
    if rows:
        _matmul_kernel[(cdiv(rows, tiles.rows) * cdiv(columns, tiles.columns), tiles.splits)](
            *(x, weight.scales if x_scales is None else x_scales, weight.values, weight.scales),
            *(weight.values if weight.zeros is None else weight.zeros, weight.scales if bias is None else bias, out),
            *(rows, columns, weight.inner, x.stride(0), w_stride, groups, weight.scales.shape[1]),
            cdiv(w_stride // weight.step, tiles.splits),
            FLOAT=x.dtype.itemsize > 1,
            HALVES=weight.halves,
            GROUP=weight.group,
            SCALE_ROWS=weight.scale_rows,
            HAS_ZEROS=weight.zeros is not None,
            HAS_X_SCALES=x_scales is not None,
            HAS_BIAS=bias is not None and alone,
            STEP=weight.step,
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    if not alone:
        return _finish(out, bias, dtype, gated)
    return silu_mul(out[0]) if gated else out[0]


def _finish(parts: Tensor, bias: Tensor | None, dtype: torch.dtype, gated: bool) -> Tensor:
    splits, rows, columns = parts.shape
    width = columns // 2 if gated else columns
    out = torch.empty(rows, width, dtype=dtype, device=parts.device)
    if rows:
        _finish_kernel[(rows, cdiv(width, _COLUMNS))](
            *(parts, parts if bias is None else bias, out, rows, columns, splits),
            GATED=gated,
            HAS_BIAS=bias is not None,
            BLOCK=_COLUMNS,
        )
    return out
