"""Choice of experts among those of a token's best groups: one program per token, which knows all of its scores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.moe import Scoring
from sgl.kernels.ops.routing import LEAST_TOTAL, Groups
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import padded

_HIDDEN = tl.constexpr(float("-inf"))


@triton.jit
def _worth(ranked: Block, CORRECTED: tl.constexpr) -> Block:
    """How good each of the groups ``[GROUPS, SIZE]`` is: as its best expert, corrected as its two best ones."""
    worth = tl.max(ranked, 1)
    if CORRECTED:
        size: tl.constexpr = ranked.shape[1]
        best = tl.argmax(ranked, 1)
        others = tl.where(tl.arange(0, size)[None, :] == best[:, None], _HIDDEN, ranked)
        worth += tl.max(others, 1)
    return worth


@bound
@triton.jit
def _route_kernel(
    logits: Pointer,
    bias: Pointer,
    weights: Pointer,
    chosen: Pointer,
    row_stride: Scalar,
    groups: Scalar,
    size: Scalar,
    top_groups: Scalar,
    top_k: Scalar,
    factor: Scalar,
    least: Scalar,
    SOFTMAX: tl.constexpr,
    CORRECTED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS), tl.arange(0, SIZE)
    expert = group[:, None] * size + member[None, :]
    there = (group < groups)[:, None] & (member < size)[None, :]
    logit = tl.load(logits + token * row_stride + expert, there, float("-inf"))
    if SOFTMAX:
        scores = tl.exp(logit - tl.max(tl.max(logit, 1), 0))
        scores = scores / tl.sum(tl.sum(scores, 1), 0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-logit))
    ranked = scores
    if CORRECTED:
        ranked += tl.load(bias + expert, there, 0.0)
    ranked = tl.where(there, ranked, _HIDDEN)

    worth, left = _worth(ranked, CORRECTED), tl.full([GROUPS], 1, tl.int32)
    worth = tl.where(group < groups, worth, _HIDDEN)
    for _ in range(top_groups):
        best = tl.argmax(worth, 0)
        left = tl.where(group == best, 0, left)
        worth = tl.where(group == best, _HIDDEN, worth)
    ranked = tl.where((left == 0)[:, None], ranked, _HIDDEN)

    flat, number = tl.reshape(ranked, [GROUPS * SIZE]), tl.reshape(expert, [GROUPS * SIZE])
    value, place = tl.reshape(scores, [GROUPS * SIZE]), tl.arange(0, GROUPS * SIZE)
    total = 1.0
    if RENORMALIZE:
        ahead, total = flat, least
        for _ in range(top_k):
            is_best = place == tl.argmax(ahead, 0)
            total += tl.sum(tl.where(is_best, value, 0.0), 0)
            ahead = tl.where(is_best, _HIDDEN, ahead)
    for rank in range(top_k):
        is_best = place == tl.argmax(flat, 0)
        tl.store(weights + token * top_k + rank, tl.sum(tl.where(is_best, value, 0.0), 0) / total * factor)
        tl.store(chosen + token * top_k + rank, tl.sum(tl.where(is_best, number, 0), 0))
        flat = tl.where(is_best, _HIDDEN, flat)


@impl("moe.route_groups", "triton", device="cuda", priority=20)
def route_groups(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: Groups,
    scoring: Scoring,
    renormalize: bool,
    factor: float,
) -> tuple[Tensor, Tensor]:
    tokens, experts = logits.shape
    size = experts // groups.count
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            *(logits, logits if bias is None else bias, weights, chosen, logits.stride(0)),
            *(groups.count, size, groups.top, top_k, factor, LEAST_TOTAL),
            SOFTMAX=scoring == "softmax",
            CORRECTED=bias is not None,
            RENORMALIZE=renormalize,
            GROUPS=padded(groups.count),
            SIZE=padded(size),
            num_warps=1,
        )
    return weights, chosen
