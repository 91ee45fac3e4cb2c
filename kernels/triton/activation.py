"""Gated activations; what has one input is one launch in torch as well."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Block, Pointer, Scalar, tanh
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv

_BLOCK = 1024


@triton.jit
def silu(x: Block) -> Block:
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu_tanh(x: Block) -> Block:
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@bound
@triton.jit
def _gated_kernel(
    x: Pointer, out: Pointer, width: Scalar, row_stride: Scalar, SILU: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x + row * row_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * row_stride + width + column, inside, 0.0).to(tl.float32)
    gate = silu(gate) if SILU else gelu_tanh(gate)
    tl.store(out + row * width + column, (gate * up).to(out.dtype.element_ty), inside)


def _launch(x: Tensor, is_silu: bool) -> Tensor:
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if rows:
        _gated_kernel[(rows, cdiv(width, _BLOCK))](x, out, width, x.stride(0), SILU=is_silu, BLOCK=_BLOCK)
    return out


@impl("act.silu_mul", "triton", device="cuda", priority=20)
def silu_mul(x: Tensor) -> Tensor:
    return _launch(x, True)


@impl("act.gelu_tanh_mul", "triton", device="cuda", priority=20)
def gelu_tanh_mul(x: Tensor) -> Tensor:
    return _launch(x, False)
