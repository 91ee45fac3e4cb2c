"""Writes keys and values to their places in the paged cache, as they are or rounded with a scale per token and head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.triton.device import Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound

_HEADS = 8  # of one program


@triton.jit
def _rounded(x: Block, pages: Pointer, GREATEST: tl.constexpr) -> tuple[Block, Block]:
    """float32 ``[H, D]`` as the pages keep it, and the scales ``[H]``. A number that is not finite spoils its scale."""
    scale = tl.max(tl.abs(x), 1) * (1.0 / GREATEST) + tl.sum(x * 0.0, 1)
    value = x / tl.where(scale > 0, scale, 1.0)[:, None]
    value = tl.minimum(tl.maximum(value, -GREATEST), GREATEST)
    if pages.dtype.element_ty == tl.int8:
        value = tl.floor(value + 0.5)
    return value.to(pages.dtype.element_ty), scale


@bound
@triton.jit
def _store_kernel(
    k: Pointer,
    v: Pointer,
    k_pages: Pointer,
    v_pages: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    out_loc: Pointer,
    k_token_stride: Scalar,
    k_head_stride: Scalar,
    v_token_stride: Scalar,
    v_head_stride: Scalar,
    GREATEST: tl.constexpr,  # the greatest number of the pages' dtype, 0: keys and values are kept as they are
    VALUES: tl.constexpr,  # whether values are kept, too, or are the beginnings of keys
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Some heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    location = tl.load(out_loc + token).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dim = tl.arange(0, BLOCK_D)
    inside = (head < KV_HEADS)[:, None] & (dim < DIM)[None, :]
    place = (location // PAGE * KV_HEADS + head) * PAGE + location % PAGE
    element = place[:, None] * DIM + dim[None, :]
    keys = tl.load(k + token * k_token_stride + head[:, None] * k_head_stride + dim[None, :], inside, 0.0)
    if GREATEST > 0:
        keys, scale = _rounded(keys.to(tl.float32), k_pages, GREATEST)
        tl.store(k_scale + place, scale, head < KV_HEADS)
    tl.store(k_pages + element, keys, inside)
    if VALUES:
        values = tl.load(v + token * v_token_stride + head[:, None] * v_head_stride + dim[None, :], inside, 0.0)
        if GREATEST > 0:
            values, scale = _rounded(values.to(tl.float32), v_pages, GREATEST)
            tl.store(v_scale + place, scale, head < KV_HEADS)
        tl.store(v_pages + element, values, inside)


def store_at(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    out_loc: Tensor,
) -> None:
    """Writes k and v ``[T, Hkv, D]`` to ``out_loc``, int64 [T]: page * page_size + offset. Of pages whose values are
    the beginnings of their keys, only k.

    With scales, float32 ``[num_pages, Hkv, page_size]``, they are rounded so that the greatest number of a token and
    head is the greatest of the pages' dtype.
    """
    _, kv_heads, page_size, dim = k_pages.shape
    heads = min(_HEADS, triton.next_power_of_2(kv_heads))
    if len(out_loc):
        _store_kernel[(len(out_loc), triton.cdiv(kv_heads, heads))](
            *(k, v, k_pages, v_pages, k if k_scale is None else k_scale, v if v_scale is None else v_scale, out_loc),
            *(k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
            VALUES=v_pages.shape[3] == dim,
            GREATEST=0.0 if k_scale is None else greatest(k_pages.dtype),
            KV_HEADS=kv_heads,
            PAGE=page_size,
            DIM=dim,
            BLOCK_H=heads,
            BLOCK_D=max(16, triton.next_power_of_2(dim)),
        )


def greatest(dtype: torch.dtype) -> float:
    """The greatest number of a dtype that keys and values are rounded to."""
    return float(torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max)
