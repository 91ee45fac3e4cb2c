"""Norms over the last dimension, alone or behind a residual add: what is read once is kept in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_TILE = 1024  # elements that are too few for a block of threads, so that narrow rows share one


@bound
@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x: Pointer,
    residual: Pointer,
    weight: Pointer,
    bias: Pointer,
    out: Pointer,
    rows: Scalar,
    heads: Scalar,
    width: Scalar,
    row_stride: Scalar,
    head_stride: Scalar,
    eps: Scalar,
    ADD: tl.constexpr,
    CENTRE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Row r of ``rows * heads`` is head ``r % heads`` of token ``r // heads``, under that head's weights."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows * heads) & (column < width)
    token, head = row // heads, row % heads
    value = tl.load(x + token * row_stride + head * head_stride + column, inside, 0.0).to(tl.float32)
    if ADD:
        place = residual + row * width + column
        total = (value + tl.load(place, inside, 0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(place, total, inside)
        value = total.to(tl.float32)
    factor = tl.load(weight + head * width + column, inside, 0.0).to(tl.float32)
    if CENTRE:
        value = tl.where(inside, value - (tl.sum(value, 1) / width)[:, None], 0.0)
    variance = tl.sum(value * value, 1) / width
    normed = value * tl.rsqrt(variance + eps)[:, None] * factor
    if CENTRE:
        normed += tl.load(bias + head * width + column, inside, 0.0).to(tl.float32)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), inside)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The norm of x, or of ``residual + x``, which then stands in residual."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width, heads = x.shape[0], x.shape[-1], weight.shape[0] if weight.dim() > 1 else 1
    wide = padded(width)
    together = max(1, _TILE // wide)
    if rows:
        _norm_kernel[(cdiv(rows * heads, together),)](
            *(x, x if residual is None else residual, weight, weight if bias is None else bias, out),
            *(rows, heads, width, x.stride(0), x.stride(1) if heads > 1 else 0, eps),
            ADD=residual is not None,
            CENTRE=bias is not None,
            ROWS=together,
            WIDTH=wide,
            num_warps=min(max(wide * together // 512, 1), 16),
        )
    return out


@impl("norm.rms", "triton", device="cuda", priority=20)
def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight, None, eps)


@impl("norm.layer", "triton", device="cuda", priority=20)
def layer(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _launch(x, None, weight, bias, eps)


@impl("norm.add_rms", "triton", device="cuda", priority=20)
def add_rms(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch(x, residual, weight, None, eps), residual


@impl("norm.add_layer", "triton", device="cuda", priority=20)
def add_layer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch(x, residual, weight, bias, eps), residual
