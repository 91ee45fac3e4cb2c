"""Draws without a sort: the least probability that stays is searched for, then one number is looked up.

A block of threads owns a row and reads it once for every step of the search. The search is over the bits of
probabilities, which order as the numbers do: it narrows a range that holds the last token to stay to a quarter at a
time, until no other token is in it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.draw import ONE_BITS, Filters
from sgl.kernels.ops.random import GAMMA, LAST_SHIFT, MIX
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import padded

_ONE = tl.constexpr(1 << ONE_BITS)
_GAMMA = tl.constexpr(GAMMA)
_SHIFT_1, _FACTOR_1 = (tl.constexpr(number) for number in MIX[0])
_SHIFT_2, _FACTOR_2 = (tl.constexpr(number) for number in MIX[1])
_LAST_SHIFT = tl.constexpr(LAST_SHIFT)

_BLOCK = 4096
_WARPS = 16


@triton.jit
def _uniform(stream: Block, counter: Block) -> Block:
    """`sgl.kernels.ops.random.uniform`."""
    z = stream.to(tl.uint64, bitcast=True) + (counter.to(tl.uint64, bitcast=True) + 1) * _GAMMA
    z = (z ^ (z >> _SHIFT_1)) * _FACTOR_1
    z = (z ^ (z >> _SHIFT_2)) * _FACTOR_2
    z = z ^ (z >> _LAST_SHIFT)
    return (z >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def _scaled(logits: Pointer, at: Scalar, width: Scalar, temperature: Scalar, BLOCK: tl.constexpr) -> Block:
    column = at + tl.arange(0, BLOCK)
    return tl.load(logits + column, column < width, float("-inf")) / temperature


@triton.jit
def _probs(
    logits: Pointer, at: Scalar, width: Scalar, temperature: Scalar, peak: Scalar, most: Scalar, BLOCK: tl.constexpr
) -> Block:
    """Probabilities of a block of tokens, that of the likeliest being ``most``; -1 beyond the last token."""
    scaled = _scaled(logits, at, width, temperature, BLOCK)
    return tl.where(at + tl.arange(0, BLOCK) < width, tl.exp(scaled - peak) * most, -1.0)


@triton.jit
def _shares(probs: Block) -> Block:
    return (tl.maximum(probs, 0.0) * _ONE).to(tl.int64)


@triton.jit
def _normalise(logits: Pointer, width: Scalar, temperature: Scalar, BLOCK: tl.constexpr) -> tuple[Scalar, Scalar]:
    """The largest scaled logit, and the probability that it gets."""
    tops, sums = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for at in range(0, width, BLOCK):
        tops = tl.maximum(tops, _scaled(logits, at, width, temperature, BLOCK))
    peak = tl.max(tops, 0)
    for at in range(0, width, BLOCK):
        sums += tl.exp(_scaled(logits, at, width, temperature, BLOCK) - peak)
    return peak, 1.0 / tl.sum(sums, 0)


@triton.jit
def _above(
    logits: Pointer,
    width: Scalar,
    temperature: Scalar,
    peak: Scalar,
    most: Scalar,
    first: Scalar,
    second: Scalar,
    third: Scalar,
    BLOCK: tl.constexpr,
) -> tuple[Scalar, ...]:
    """How many tokens have at least the bits of each pivot, and their shares."""
    counts_1, shares_1 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    counts_2, shares_2 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    counts_3, shares_3 = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    for at in range(0, width, BLOCK):
        probs = _probs(logits, at, width, temperature, peak, most, BLOCK)
        bits, share = probs.to(tl.int32, bitcast=True), _shares(probs)
        counts_1 += (bits >= first).to(tl.int32)
        shares_1 += tl.where(bits >= first, share, 0)
        counts_2 += (bits >= second).to(tl.int32)
        shares_2 += tl.where(bits >= second, share, 0)
        counts_3 += (bits >= third).to(tl.int32)
        shares_3 += tl.where(bits >= third, share, 0)
    return (
        tl.sum(counts_1, 0),
        tl.sum(shares_1, 0),
        tl.sum(counts_2, 0),
        tl.sum(shares_2, 0),
        tl.sum(counts_3, 0),
        tl.sum(shares_3, 0),
    )


@triton.jit
def _floor(
    logits: Pointer,
    width: Scalar,
    temperature: Scalar,
    peak: Scalar,
    most: Scalar,
    top_k: Scalar,
    limit: Scalar,
    BLOCK: tl.constexpr,
) -> Scalar:
    """The bits of a probability between the last token to stay and the next likely one.

    A token stays if fewer than ``top_k`` are likelier and those have ``limit`` of the shares at most. So below ``high``
    one may still stay, below ``low`` none; ``inside`` tokens are from low on and under high.
    """
    low, high = tl.full((), 0, tl.int32), most.to(tl.int32, bitcast=True) + 1
    num_high, inside = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32) + width
    while (inside > 1) & (high - low > 1):
        quarter = tl.maximum((high - low) // 4, 1)
        first = low + quarter
        second = tl.minimum(first + quarter, high - 1)
        third = tl.minimum(second + quarter, high - 1)
        n1, s1, n2, s2, n3, s3 = _above(logits, width, temperature, peak, most, first, second, third, BLOCK)
        ok_1, ok_2, ok_3 = (n1 < top_k) & (s1 <= limit), (n2 < top_k) & (s2 <= limit), (n3 < top_k) & (s3 <= limit)
        num_low = tl.where(ok_1, num_high + inside, tl.where(ok_2, n1, tl.where(ok_3, n2, n3)))
        num_high = tl.where(ok_1, n1, tl.where(ok_2, n2, tl.where(ok_3, n3, num_high)))
        new_low = tl.where(ok_1, low, tl.where(ok_2, first, tl.where(ok_3, second, third)))
        high = tl.where(ok_1, first, tl.where(ok_2, second, tl.where(ok_3, third, high)))
        low = new_low
        inside = num_low - num_high
    return low


@triton.jit
def _find(
    logits: Pointer,
    width: Scalar,
    temperature: Scalar,
    peak: Scalar,
    most: Scalar,
    floor: Scalar,
    target: Scalar,
    BLOCK: tl.constexpr,
) -> Scalar:
    """The first token up to which the shares of those that stay exceed ``target``."""
    before, at, share = tl.full((), 0, tl.int64), 0, tl.full((), 0, tl.int64)
    found = width - 1
    while at < width:
        probs = _probs(logits, at, width, temperature, peak, most, BLOCK)
        kept = tl.where(probs >= floor, _shares(probs), 0)
        share = tl.sum(kept, 0)
        if before + share > target:
            passed = before + tl.cumsum(kept, 0) > target
            found = at + BLOCK - tl.sum(passed.to(tl.int32), 0)
            at = width
        before += share
        at += BLOCK
    return tl.minimum(found, width - 1)


@bound
@triton.jit
def _draw_kernel(
    logits: Pointer,
    temperatures: Pointer,
    top_ks: Pointer,
    top_ps: Pointer,
    min_ps: Pointer,
    streams: Pointer,
    counters: Pointer,
    token_ids: Pointer,
    width: Scalar,
    row_stride: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    temperature, min_p = tl.load(temperatures + row), tl.load(min_ps + row)
    top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
    peak, most = _normalise(logits, width, temperature, BLOCK)
    is_k = (top_k > 0) & (top_k < width)
    floor = tl.full((), 0.0, tl.float32)
    if is_k | (top_p < 1.0):
        count = tl.where(is_k, top_k, width + 1)
        limit = (tl.where(top_p < 1.0, top_p, 2.0) * _ONE).to(tl.int64)
        floor = _floor(logits, width, temperature, peak, most, count, limit, BLOCK).to(tl.float32, bitcast=True)
    floor = tl.maximum(floor, min_p * most)
    kept = tl.zeros((BLOCK,), tl.int64)
    for at in range(0, width, BLOCK):
        probs = _probs(logits, at, width, temperature, peak, most, BLOCK)
        kept += tl.where(probs >= floor, _shares(probs), 0)
    number = _uniform(tl.load(streams + row), tl.load(counters + row))
    target = (number * tl.sum(kept, 0).to(tl.float64)).to(tl.int64)
    tl.store(token_ids + row, _find(logits, width, temperature, peak, most, floor, target, BLOCK).to(tl.int64))


def look_up(probs: Tensor, streams: Tensor, counters: Tensor) -> Tensor:
    """Draws from distributions that are filtered, float32 ``[N, V]``, each of any sum."""
    ones, nothing = probs.new_ones(len(probs)), probs.new_zeros(len(probs))
    return draw(probs.log(), Filters(ones, nothing.long(), ones, nothing, {}, 0), streams, counters)


@impl("sample.draw", "triton", device="cuda", priority=20)
def draw(logits: Tensor, filters: Filters, streams: Tensor, counters: Tensor) -> Tensor:
    rows, width = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        _draw_kernel[(rows,)](
            *(logits, filters.temperature, filters.top_k, filters.top_p, filters.min_p, streams, counters, token_ids),
            *(width, logits.stride(0)),
            BLOCK=min(_BLOCK, padded(width)),
            num_warps=_WARPS,
        )
    return token_ids
