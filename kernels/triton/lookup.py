"""Rows of a table, and the bookkeeping around a step in which every row is one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.decode import Located
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_COLUMNS = 1024
_SLOTS = 128


@bound
@triton.jit
def _embedding_kernel(ids: Pointer, table: Pointer, out: Pointer, width: Scalar, BLOCK: tl.constexpr) -> None:
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    tl.store(out + row * width + column, tl.load(table + tl.load(ids + row) * width + column, inside), inside)


@impl("embedding", "triton", device="cuda", priority=20)
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    rows, width = ids.shape[0], table.shape[1]
    out = torch.empty(rows, width, dtype=table.dtype, device=table.device)
    if rows:
        _embedding_kernel[(rows, cdiv(width, _COLUMNS))](ids, table, out, width, BLOCK=_COLUMNS)
    return out


@bound
@triton.jit(do_not_specialize=["count"])
def _locate_kernel(
    tokens: Pointer,
    computed: Pointer,
    pages: Pointer,
    slots: Pointer,
    found: Pointer,
    seq_lens: Pointer,
    loc: Pointer,
    count: Scalar,
    max_len: Scalar,
    max_pages: Scalar,
    page_size: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    """``found``, int64 ``[3, count]``: the token, its position, and the next one."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    slot = tl.load(slots + row, inside, 0)
    position = tl.load(computed + slot, inside, 0)
    tl.store(found + row, tl.load(tokens + slot * max_len + position, inside, 0).to(tl.int64), inside)
    tl.store(found + count + row, position, inside)
    tl.store(found + 2 * count + row, position + 1, inside)
    tl.store(seq_lens + row, (position + 1).to(tl.int32), inside)
    page = tl.load(pages + slot * max_pages + position // page_size, inside, 0).to(tl.int64)
    tl.store(loc + row, page * page_size + position % page_size, inside)


@impl("decode.locate", "triton", device="cuda", priority=20)
def locate(tokens: Tensor, computed: Tensor, pages: Sequence[Tensor], page_size: int, slots: Tensor) -> Located:
    """One launch per KV group; each finds the rest anew, which costs less than a launch of its own."""
    count = slots.shape[0]
    found = torch.empty(3 + len(pages), count, dtype=torch.int64, device=slots.device)
    seq_lens = torch.empty(count, dtype=torch.int32, device=slots.device)
    input_ids, positions, next_positions, *out_loc = found.unbind()
    for table, loc in zip(pages if count else (), out_loc, strict=count > 0):
        _locate_kernel[(cdiv(count, _SLOTS),)](
            *(tokens, computed, table, slots, found, seq_lens, loc),
            *(count, tokens.stride(0), table.stride(0), page_size),
            BLOCK=_SLOTS,
            num_warps=1,
        )
    return Located(input_ids, positions, next_positions, seq_lens, tuple(out_loc))


@bound
@triton.jit
def _refill_kernel(
    tokens: Pointer,
    computed: Pointer,
    pages: Pointer,
    slots: Pointer,
    input_ids: Pointer,
    positions: Pointer,
    next_positions: Pointer,
    seq_lens: Pointer,
    out_loc: Pointer,
    page_table: Pointer,
    q_len: Scalar,
    max_len: Scalar,
    max_pages: Scalar,
    page_size: Scalar,
    LEN: tl.constexpr,
    PAGES: tl.constexpr,
) -> None:
    """A slot's tokens, and a part of its page table."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    column = part * PAGES + tl.arange(0, PAGES)
    own = tl.load(pages + slot * max_pages + column, column < max_pages, 0)
    tl.store(page_table + row * max_pages + column, own, column < max_pages)
    if part == 0:
        first, offset = tl.load(computed + slot), tl.arange(0, LEN)
        position, place, inside = first + offset, row * q_len + offset, offset < q_len
        tl.store(input_ids + place, tl.load(tokens + slot * max_len + position, inside, 0).to(tl.int64), inside)
        tl.store(positions + place, position, inside)
        tl.store(next_positions + place, position + 1, inside)
        tl.store(seq_lens + row, (first + q_len).to(tl.int32))
        page = tl.load(pages + slot * max_pages + position // page_size, inside, 0).to(tl.int64)
        tl.store(out_loc + place, page * page_size + position % page_size, inside)


@impl("decode.refill", "triton", device="cuda", priority=20)
def refill(
    tokens: Tensor,
    computed: Tensor,
    pages: Sequence[Tensor],
    page_size: int,
    slots: Tensor,
    q_len: int,
    out: Located,
    page_tables: Sequence[Tensor],
) -> None:
    """One launch per KV group, as `locate`."""
    for table, out_loc, page_table in zip(pages, out.out_loc, page_tables, strict=True):
        max_pages = table.shape[1]
        assert table.is_contiguous() and page_table.is_contiguous()
        if len(slots):
            _refill_kernel[(len(slots), cdiv(max_pages, _COLUMNS))](
                *(tokens, computed, table, slots, out.input_ids, out.positions, out.next_positions, out.seq_lens),
                *(out_loc, page_table, q_len, tokens.stride(0), max_pages, page_size),
                LEN=padded(q_len),
                PAGES=_COLUMNS,
            )


@bound
@triton.jit(do_not_specialize=["count"])
def _commit_kernel(
    tokens: Pointer,
    computed: Pointer,
    slots: Pointer,
    positions: Pointer,
    token_ids: Pointer,
    count: Scalar,
    max_len: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    slot, position = tl.load(slots + row, inside, 0), tl.load(positions + row, inside, 0)
    tl.store(tokens + slot * max_len + position, tl.load(token_ids + row, inside, 0).to(tl.int32), inside)
    tl.store(computed + slot, position, inside)


@impl("decode.commit", "triton", device="cuda", priority=20)
def commit(tokens: Tensor, computed: Tensor, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    count = slots.shape[0]
    if count:
        _commit_kernel[(cdiv(count, _SLOTS),)](
            *(tokens, computed, slots, positions, token_ids, count, tokens.stride(0)), BLOCK=_SLOTS, num_warps=1
        )
