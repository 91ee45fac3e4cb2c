"""Mixtures of experts: tokens are grouped by expert in blocks of rows, and two products run over all blocks at once.

What is done for a pair of token and expert stands at that pair's own place from the first product on, so the order in
which pairs found their blocks changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.linear import GatedLinear, LinearFn, PlainLinear
from sgl.kernels.ops.moe import ExpertByExpert, ExpertsFn, Scoring
from sgl.kernels.registry import impl
from sgl.kernels.triton.activation import silu
from sgl.kernels.triton.device import Block, Pointer, Scalar, dot
from sgl.kernels.triton.linear import Gated
from sgl.kernels.triton.shapes import cdiv, padded

_PAIRS = 256
_COLUMNS = 512
_STEP = 64
_FEW = 256  # rows, as many as steps that are captured have


@triton.jit
def _route_kernel(
    logits: Pointer,
    weights: Pointer,
    chosen: Pointer,
    experts: Scalar,
    row_stride: Scalar,
    top_k: Scalar,
    SOFTMAX: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    token, expert = tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    logit = tl.load(logits + token * row_stride + expert, expert < experts, float("-inf"))
    if SOFTMAX:
        scores = tl.exp(logit - tl.max(logit, 0))
        scores = scores / tl.sum(scores, 0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-logit))
    scores = tl.where(expert < experts, scores, -1.0)
    total = 1.0
    if RENORMALIZE:
        left, total = scores, 0.0
        for _ in range(top_k):
            total += tl.max(left, 0)
            left = tl.where(expert == tl.argmax(left, 0), -1.0, left)
    left = scores
    for rank in range(top_k):
        best = tl.argmax(left, 0)
        tl.store(weights + token * top_k + rank, tl.max(left, 0) / total)
        tl.store(chosen + token * top_k + rank, best)
        left = tl.where(expert == best, -1.0, left)


@impl("moe.route", "triton", device="cuda", priority=20)
def route(logits: Tensor, top_k: int, scoring: Scoring, renormalize: bool) -> tuple[Tensor, Tensor]:
    tokens, experts = logits.shape
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            *(logits, weights, chosen, experts, logits.stride(0), top_k),
            SOFTMAX=scoring == "softmax",
            RENORMALIZE=renormalize,
            EXPERTS=padded(experts),
            num_warps=1,
        )
    return weights, chosen


@triton.jit(do_not_specialize=["pairs"])
def _rank_kernel(chosen: Pointer, counts: Pointer, ranks: Pointer, pairs: Scalar, BLOCK: tl.constexpr) -> None:
    """How many pairs of the same expert found their place before."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    rank = tl.atomic_add(counts + tl.load(chosen + pair, inside, 0), 1, inside)
    tl.store(ranks + pair, rank, inside)


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


@triton.jit
def _weights(weight: Pointer, row: Block, k: Block, rows: Scalar, inner: Scalar) -> Block:
    """``[STEP, COLUMNS]`` of an expert's ``[N, K]``."""
    return tl.load(weight + row[None, :] * inner + k[:, None], (row < rows)[None, :] & (k < inner)[:, None], 0.0)


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
    return Blocks(places, owners, rows)


@dataclass(frozen=True, slots=True)
class GroupedExperts:
    ups: Sequence[Tensor]  # [2F, H] per expert
    downs: Sequence[Tensor]  # [H, F] per expert
    up_addresses: Tensor  # int64 [E]
    down_addresses: Tensor  # int64 [E]

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        tokens, width = x.shape
        if not tokens:
            return torch.empty_like(x)
        blocks, inner = grouped(chosen, len(self.ups)), self.downs[0].shape[1]
        hidden = self._multiply(x.contiguous(), self.up_addresses, blocks, chosen, inner, chosen.shape[1], gated=True)
        parts = self._multiply(hidden, self.down_addresses, blocks, chosen, width, 1, gated=False)
        out = torch.empty_like(x)
        _combine_kernel[(tokens, cdiv(width, _COLUMNS))](parts, weights, out, width, chosen.shape[1], BLOCK=_COLUMNS)
        return out

    def _multiply(
        self, x: Tensor, addresses: Tensor, blocks: Blocks, chosen: Tensor, columns: int, shared: int, gated: bool
    ) -> Tensor:
        """``[T or T * k, K] -> [T * k, columns]``; ``shared`` pairs have a row of x."""
        pairs = chosen.numel()
        out = torch.empty(pairs, columns, dtype=x.dtype, device=x.device)
        tile = 64 if gated or blocks.rows <= 32 else 128
        _grouped_kernel[(len(blocks.owners), cdiv(columns, tile))](
            *(x, addresses, blocks.places, blocks.owners, out, len(self.ups), pairs, columns, x.shape[1], shared),
            GATED=gated,
            ROWS=blocks.rows,
            COLUMNS=tile,
            STEP=_STEP,
            num_warps=8 if blocks.rows >= 128 else 4,
            num_stages=3,
        )
        return out


@dataclass(frozen=True, slots=True)
class EveryExpert:
    """Experts that do not join. Few rows go through all of them: nothing is read back, so steps can be captured."""

    ups: Sequence[LinearFn]
    downs: Sequence[LinearFn]

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        if len(x) > _FEW:
            return ExpertByExpert(self.ups, self.downs)(x, weights, chosen)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            share = (weights * (chosen == expert)).sum(1, keepdim=True)
            out += share * down(up(x)).float()
        return out.to(x.dtype)


@impl("moe.experts", "triton", device="cuda", dtypes=(torch.bfloat16, torch.float16), priority=20)
def experts(ups: Sequence[LinearFn], downs: Sequence[LinearFn]) -> ExpertsFn:
    """Experts with weights in floating point join; others compute one by one."""
    bare = [_bare(up.linear) for up in ups if isinstance(up, (Gated, GatedLinear))] + [_bare(down) for down in downs]
    stored = [weight for weight in bare if weight is not None]
    if len(stored) < len(ups) + len(downs):
        return EveryExpert(ups, downs)
    up_weights, down_weights = stored[: len(ups)], stored[len(ups) :]
    addresses = (
        torch.tensor([weight.data_ptr() for weight in part], device=part[0].device)
        for part in (up_weights, down_weights)
    )
    return GroupedExperts(up_weights, down_weights, *addresses)


def _bare(linear: LinearFn) -> Tensor | None:
    """The weight of a layer that is nothing else."""
    if isinstance(linear, PlainLinear) and linear.bias is None and linear.weight.is_contiguous():
        return linear.weight
    return None
