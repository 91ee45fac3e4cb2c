"""Mixtures of experts: who computes, and two products that run over all experts' blocks of rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.linear import LinearFn
from sgl.kernels.ops.moe import ExpertByExpert, ExpertsFn, Scoring
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.grouped import Product, joined
from sgl.kernels.triton.grouping import combine, grouped
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import padded

_FEW = 256  # rows, as many as steps that are captured have


@bound
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


@dataclass(frozen=True, slots=True)
class JoinedExperts:
    up: Product  # gated
    down: Product
    count: int

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        if not len(x):
            return torch.empty_like(x)
        blocks = grouped(chosen, self.count)
        return combine(self.down(self.up(x.contiguous(), blocks, chosen.shape[1]), blocks, 1), weights)


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
    """Experts whose weights are stored alike join; others compute one by one."""
    up, down = joined(ups, gated=True), joined(downs, gated=False)
    return EveryExpert(ups, downs) if up is None or down is None else JoinedExperts(up, down, len(ups))
