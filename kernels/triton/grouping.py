"""Tokens grouped by expert in blocks of rows, and the weighted sum of what experts made of them; multiplies nothing.

What is done for a pair of token and expert stands at that pair's own place from the first product on, so the order in
which pairs found their blocks changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_PAIRS = 256
_COLUMNS = 512


@bound
@triton.jit(do_not_specialize=["pairs"])
def _rank_kernel(chosen: Pointer, counts: Pointer, ranks: Pointer, pairs: Scalar, BLOCK: tl.constexpr) -> None:
    """How many pairs of the same expert found their place before."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    rank = tl.atomic_add(counts + tl.load(chosen + pair, inside, 0), 1, inside)
    tl.store(ranks + pair, rank, inside)


@bound
@triton.jit(do_not_specialize=["pairs", "blocks"])
def _place_kernel(
    chosen: Pointer,
    counts: Pointer,
    ranks: Pointer,
    places: Pointer,
    owners: Pointer,
    pairs: Scalar,
    experts: Scalar,
    blocks: Scalar,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Writes every pair to its place, and to every block its expert: ``experts`` where there is none."""
    index, expert = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, EXPERTS)
    needed = (tl.load(counts + expert, expert < experts, 0) + ROWS - 1) // ROWS
    ends = tl.cumsum(needed, 0)
    owner = tl.sum((ends[None, :] <= index[:, None]).to(tl.int32), 1)
    tl.store(owners + index, tl.minimum(owner, experts), index < blocks)
    inside = index < pairs
    own, rank = tl.load(chosen + index, inside, 0), tl.load(ranks + index, inside, 0)
    first = tl.sum(tl.where(expert[None, :] < own[:, None], needed[None, :], 0), 1)
    tl.store(places + first * ROWS + rank, index, inside)


@bound
@triton.jit
def _combine_kernel(
    parts: Pointer, weights: Pointer, out: Pointer, width: Scalar, top_k: Scalar, BLOCK: tl.constexpr
) -> None:
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, total = column < width, tl.zeros((BLOCK,), tl.float32)
    for rank in range(top_k):
        pair = token * top_k + rank
        total += tl.load(weights + pair) * tl.load(parts + pair * width + column, inside, 0.0).to(tl.float32)
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), inside)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Pairs of token and expert, in blocks of rows that one expert computes."""

    places: Tensor  # int32 [blocks * rows], the pairs; a number beyond them where there is none
    owners: Tensor  # int32 [blocks], their experts; a number beyond them where a block is empty
    rows: int
    pairs: int


def grouped(chosen: Tensor, experts: int) -> Blocks:
    """Blocks for ``chosen`` experts, int32 ``[T, k]``; how many there are follows from the shape alone."""
    pairs, device = chosen.numel(), chosen.device
    rows = min(max(padded(cdiv(pairs, experts)), 16), 128)
    blocks = min(pairs, (pairs + experts * (rows - 1)) // rows)
    counts = torch.zeros(experts, dtype=torch.int32, device=device)
    ranks = torch.empty(pairs, dtype=torch.int32, device=device)
    places = torch.full((blocks * rows,), pairs, dtype=torch.int32, device=device)
    owners = torch.empty(blocks, dtype=torch.int32, device=device)
    _rank_kernel[(cdiv(pairs, _PAIRS),)](chosen, counts, ranks, pairs, BLOCK=_PAIRS)
    span = 32  # a pair looks at all experts
    _place_kernel[(cdiv(pairs, span),)](
        *(chosen, counts, ranks, places, owners, pairs, experts, blocks),
        ROWS=rows,
        EXPERTS=padded(experts),
        BLOCK=span,
    )
    return Blocks(places, owners, rows, pairs)


def combine(parts: Tensor, weights: Tensor) -> Tensor:
    """``[T, N]`` of ``parts`` ``[T * k, N]`` by their ``weights``, float32 ``[T, k]``."""
    (tokens, top_k), width = weights.shape, parts.shape[1]
    out = torch.empty(tokens, width, dtype=parts.dtype, device=parts.device)
    _combine_kernel[(tokens, cdiv(width, _COLUMNS))](parts, weights, out, width, top_k, BLOCK=_COLUMNS)
    return out
