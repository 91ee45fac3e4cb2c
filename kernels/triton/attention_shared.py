"""Finds the rows of a step whose page tables begin alike, so that their queries meet those pages together, in one tile.

All of it happens on the device: the host need not know pages or lengths, and a captured step finds the rows anew in
every replay. Rows share whole splits, from the first on, with the first row that begins as they do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.triton.device import Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound

FIRST_SPLIT = tl.constexpr(256)  # tokens of a split; doubled until a row has few enough of them
_BLOCK = 128  # rows, or pages, that are looked at together


@triton.jit
def split_size(seq_len: Scalar, SPLITS: tl.constexpr) -> Scalar:
    size = seq_len * 0 + FIRST_SPLIT
    while size * SPLITS < seq_len:
        size *= 2
    return size


@triton.jit
def _is_like(
    page: Block,
    num_tokens: Block,
    seq_len: Block,
    first_page: Scalar,
    size: Scalar,
    SPLITS: tl.constexpr,
    MOST: tl.constexpr,
) -> Block:
    """Whether rows begin with a page, have a split of cached tokens at least, and splits of this size."""
    begins = (page == first_page) & (num_tokens > 0) & (num_tokens <= MOST) & (seq_len - num_tokens >= size)
    return begins & (size * SPLITS >= seq_len) & ((size == FIRST_SPLIT) | (size // 2 * SPLITS < seq_len))


@bound
@triton.jit(do_not_specialize=["table_stride", "rows"])
def _leader_kernel(
    tables: Pointer,
    cu_q: Pointer,
    seq_lens: Pointer,
    found: Pointer,  # int32 [B, 2], the first row that begins as this one, or -1, and the splits in common with it
    table_stride: Scalar,
    rows: Scalar,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    table = tables + row.to(tl.int64) * table_stride
    num_tokens, seq_len = tl.load(cu_q + row + 1) - tl.load(cu_q + row), tl.load(seq_lens + row)
    size = split_size(seq_len, SPLITS)
    leader, shared = row * 0 - 1, row * 0
    if (num_tokens > 0) & (num_tokens <= MOST) & (seq_len - num_tokens >= size):
        first_page, leader = tl.load(table), row
        for at in range(0, row, BLOCK):
            other = at + tl.arange(0, BLOCK)
            inside = other < row
            start = tl.load(cu_q + other, inside, 0)
            count, length = tl.load(cu_q + other + 1, inside, 0) - start, tl.load(seq_lens + other, inside, 0)
            page = tl.load(tables + other.to(tl.int64) * table_stride, inside, 0)
            like = inside & _is_like(page, count, length, first_page, size, SPLITS, MOST)
            leader = tl.minimum(leader, tl.min(tl.where(like, other, row), 0))
        past = tl.load(seq_lens + leader) - tl.load(cu_q + leader + 1) + tl.load(cu_q + leader)
        shared = tl.minimum(seq_len - num_tokens, past) // size
        pages, ahead = tl.cdiv(shared * size, PAGE), tables + leader.to(tl.int64) * table_stride
        same = pages
        for at in range(0, pages, BLOCK):
            column = at + tl.arange(0, BLOCK)
            inside = column < pages
            differs = tl.load(table + column, inside, 0) != tl.load(ahead + column, inside, 0)
            same = tl.minimum(same, tl.min(tl.where(differs, column, pages), 0))
        shared = tl.minimum(shared, same * PAGE // size)
    tl.store(found + row * 2, leader)
    tl.store(found + row * 2 + 1, shared)


@bound
@triton.jit(do_not_specialize=["rows"])
def _rank_kernel(found: Pointer, shares: Pointer, order: Pointer, rows: Scalar, BLOCK: tl.constexpr) -> None:
    """Orders the rows by leader, and those of one by what they share, the most first; the leader is the first."""
    row = tl.program_id(0)
    leader, shared = tl.load(found + row * 2), tl.load(found + row * 2 + 1)
    rank, begin, most = row * 0, row * 0, row * 0
    if leader >= 0:
        for at in range(0, rows, BLOCK):
            other = at + tl.arange(0, BLOCK)
            theirs = tl.load(found + other * 2, other < rows, -1)
            splits = tl.load(found + other * 2 + 1, other < rows, 0)
            follows = (theirs == leader) & (other != leader)
            begin += tl.sum(((theirs >= 0) & (theirs < leader)).to(tl.int32), 0)
            first = (splits > shared) | ((splits == shared) & (other < row))
            rank += tl.sum((follows & first).to(tl.int32), 0)
            most = tl.maximum(most, tl.max(tl.where(follows, splits, 0), 0))
        if row == leader:  # whatever it has in common with itself
            rank, shared = row * 0, most
        else:
            rank += 1
        tl.store(order + begin + rank, row)
    tl.store(shares + row * 4, shared)
    tl.store(shares + row * 4 + 1, begin + rank)
    tl.store(shares + row * 4 + 2, rank)
    tl.store(shares + row * 4 + 3, leader)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who shares what in a step."""

    shares: Tensor  # int32 [B, 4]: shared splits, place in the order, place among those of its leader, leader or -1
    order: Tensor  # int32 [B], rows by leader; -1 behind the last
    numbers: Tensor  # int32 [B], of a row's first token among all that are computed by splits
    tokens: int  # that a row has at most


def find_sharing(
    table: Tensor, cu_q: Tensor, seq_lens: Tensor, page_size: int, splits: int, tokens: int, numbers: Tensor
) -> Sharing:
    """Among rows of up to ``tokens`` tokens whose keys are cut into up to ``splits`` splits."""
    rows = len(seq_lens)
    found = torch.empty(rows, 2, dtype=torch.int32, device=table.device)
    shares = torch.empty(rows, 4, dtype=torch.int32, device=table.device)
    order = torch.full((rows,), -1, dtype=torch.int32, device=table.device)
    _leader_kernel[(rows,)](
        *(table, cu_q, seq_lens, found, table.stride(0), rows),
        SPLITS=splits,
        PAGE=page_size,
        MOST=tokens,
        BLOCK=_BLOCK,
        num_warps=1,
    )
    _rank_kernel[(rows,)](found, shares, order, rows, BLOCK=_BLOCK, num_warps=1)
    return Sharing(shares, order, numbers, tokens)
