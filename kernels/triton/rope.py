"""Rotation of heads, and keys and values on their way to their pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_TILE = 2048  # elements of a token that one block of threads takes


@bound
@triton.jit
def _rope_kernel(
    x: Pointer,
    cos: Pointer,
    sin: Pointer,
    out: Pointer,
    heads: Scalar,
    half: Scalar,
    token_stride: Scalar,
    head_stride: Scalar,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside, within = (head < heads) & (pair < half), pair < half
    source = x + token * token_stride + head * head_stride + pair
    angle = token * 2 * half + pair
    first, second = tl.load(source, inside, 0.0).to(tl.float32), tl.load(source + half, inside, 0.0).to(tl.float32)
    cos_first, sin_first = tl.load(cos + angle, within, 0.0), tl.load(sin + angle, within, 0.0)
    cos_second, sin_second = tl.load(cos + angle + half, within, 0.0), tl.load(sin + angle + half, within, 0.0)
    place = out + (token * heads + head) * 2 * half + pair
    rotated = first * cos_first.to(tl.float32) + second * sin_first.to(tl.float32)
    tl.store(place, rotated.to(out.dtype.element_ty), inside)
    rotated = second * cos_second.to(tl.float32) + first * sin_second.to(tl.float32)
    tl.store(place + half, rotated.to(out.dtype.element_ty), inside)


@impl("rope.apply", "triton", device="cuda", priority=20)
def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    tokens, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = padded(width // 2)
    together = min(padded(heads), max(1, _TILE // (2 * half)))
    if tokens:
        _rope_kernel[(tokens, cdiv(heads, together))](
            *(x, cos, sin, out, heads, width // 2, x.stride(0), x.stride(1)), HEADS=together, HALF=half
        )
    return out


@bound
@triton.jit
def _store_kernel(
    k: Pointer,
    v: Pointer,
    k_pages: Pointer,
    v_pages: Pointer,
    page_ids: Pointer,
    offsets: Pointer,
    heads: Scalar,
    width: Scalar,
    page_size: Scalar,
    k_token_stride: Scalar,
    k_head_stride: Scalar,
    v_token_stride: Scalar,
    v_head_stride: Scalar,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (column < width)
    line = (tl.load(page_ids + token) * heads + head) * page_size + tl.load(offsets + token)
    place = line * width + column
    key = tl.load(k + token * k_token_stride + head * k_head_stride + column, inside)
    tl.store(k_pages + place, key, inside)
    value = tl.load(v + token * v_token_stride + head * v_head_stride + column, inside)
    tl.store(v_pages + place, value, inside)


@impl("kv.store", "triton", device="cuda", priority=20)
def store(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_ids: Tensor, offsets: Tensor) -> None:
    tokens, heads, width = k.shape
    assert k.stride(2) == v.stride(2) == 1 and k_pages.is_contiguous() and v_pages.is_contiguous()
    wide = padded(width)
    together = min(padded(heads), max(1, _TILE // wide))
    if tokens:
        _store_kernel[(tokens, cdiv(heads, together))](
            *(k, v, k_pages, v_pages, page_ids, offsets, heads, width, k_pages.shape[2]),
            *(k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
            HEADS=together,
            WIDTH=wide,
        )
