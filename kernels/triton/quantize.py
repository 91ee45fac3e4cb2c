"""Inputs of products in eight bits: each row, or each group of a row, in steps of its own scale."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.linear import FP8_MAX
from sgl.kernels.triton.device import Pointer, Scalar, fp8
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_TILE = 2048  # elements of a row that one block of threads takes, if its groups are no wider
_INT8_MAX = tl.constexpr(127.0)
_FP8_MAX = tl.constexpr(FP8_MAX)
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no place for a fraction


@bound
@triton.jit
def _quantize_kernel(
    x: Pointer,
    values: Pointer,
    scales: Pointer,
    width: Scalar,
    group: Scalar,
    groups: Scalar,
    row_stride: Scalar,
    static: Scalar,
    STATIC: tl.constexpr,
    FP8: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    index, lane = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS), tl.arange(0, GROUP)
    column = index[:, None] * group + lane[None, :]
    inside = (lane < group)[None, :] & (column < width) & (index < groups)[:, None]
    inputs = tl.load(x + row * row_stride + column, inside, 0.0).to(tl.float32)
    if STATIC:
        scale = tl.full((GROUPS,), 0.0, tl.float32) + static
    else:
        greatest = tl.max(tl.abs(inputs), 1)
        scale = tl.div_rn(tl.maximum(greatest, 1e-12), _FP8_MAX) if FP8 else tl.div_rn(greatest, _INT8_MAX)
        tl.store(scales + row * groups + index, scale, index < groups)
    steps = tl.div_rn(inputs, tl.where(scale > 0, scale, 1.0)[:, None])
    place = values + row * width + column
    if FP8:
        steps = tl.minimum(tl.maximum(steps, -_FP8_MAX), _FP8_MAX)
        tl.store(place, fp8(steps), inside)
    else:
        tl.store(place, ((steps + _ROUNDER) - _ROUNDER).to(tl.int8), inside)


def quantize(x: Tensor, dtype: torch.dtype, group: int, static: float | None = None) -> tuple[Tensor, Tensor]:
    """x ``[T, K]`` in int8 or fp8 e4m3, and the scale of every ``group`` inputs: float32 ``[T, G]``.

    With a ``static`` scale the scales are left undefined.
    """
    (rows, width), groups = x.shape, cdiv(x.shape[1], group)
    values = torch.empty(rows, width, dtype=dtype, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    wide = padded(group)
    together = min(padded(groups), max(1, _TILE // wide))
    if rows:
        _quantize_kernel[(rows, cdiv(groups, together))](
            *(x, values, scales, width, group, groups, x.stride(0), static or 1.0),
            STATIC=static is not None,
            FP8=dtype == torch.float8_e4m3fn,
            GROUPS=together,
            GROUP=wide,
            num_warps=min(max(together * wide // 512, 1), 16),
        )
    return values, scales
