"""Cases of what models with latents have of their own: experts in groups, and a product for every head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.checks.case import Case, random
from sgl.kernels.ops.moe import Scoring
from sgl.kernels.ops.routing import Groups

Answer = tuple[list[Tensor], list[Tensor]]


def cases() -> Iterator[Case]:
    for tokens in (0, 1, 5):
        yield _route(tokens, 32, 6, Groups(8, 3), "softmax", corrected=False, renormalize=False)
        yield _route(tokens, 32, 8, Groups(8, 4), "sigmoid", corrected=True, renormalize=True)
    yield _route(3, 60, 4, Groups(1, 1), "softmax", corrected=False, renormalize=True)
    yield _route(3, 30, 5, Groups(3, 2), "sigmoid", corrected=True, renormalize=False)
    yield _route(2, 256, 8, Groups(8, 4), "sigmoid", corrected=True, renormalize=True)
    for tokens, heads, outputs, inner in ((0, 2, 8, 6), (1, 3, 40, 24), (7, 2, 64, 33)):
        yield _heads(tokens, heads, outputs, inner)
    for tokens in (1, 64, 2048):
        yield _heads(tokens, 128, 512, 128, large=True)


def _route(
    tokens: int, experts: int, top_k: int, groups: Groups, scoring: Scoring, corrected: bool, renormalize: bool
) -> Case:
    """Every second expert ties with the one before it, and every second group with the one before."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        size = experts // groups.count
        logits = random(tokens, -(-groups.count // 2), -(-size // 2)).float()
        logits = logits.repeat_interleave(2, 2)[..., :size].repeat_interleave(2, 1)[:, : groups.count].flatten(1)
        bias = (random(size) * 0.3).float().repeat(groups.count) if corrected else None
        weights, chosen = fn(logits, bias, top_k, groups, scoring, renormalize, 2.5)
        assert weights.dtype == torch.float32 and chosen.dtype == torch.int32
        scores = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
        wanted = [_choose(row, bias, top_k, groups) for row in scores]
        assert chosen.tolist() == wanted
        best = torch.stack([row[found] for row, found in zip(scores, wanted, strict=True)]) if tokens else weights
        return [weights], [2.5 * (best / best.sum(-1, keepdim=True) if renormalize else best)]

    kind = f"{scoring}{' corrected' if corrected else ''}{' renormalized' if renormalize else ''}"
    name = f"{kind} {top_k} of {experts}, {groups.top} of {groups.count} groups, for {tokens}"
    return Case("moe.route_groups", name, run, torch.float32)


def _choose(scores: Tensor, bias: Tensor | None, top_k: int, groups: Groups) -> list[int]:
    """One token's experts, by sorting lists."""
    ranked: list[float] = (scores if bias is None else scores + bias.double()).tolist()
    size, counted = len(ranked) // groups.count, 1 if bias is None else 2
    worth = [sum(sorted(ranked[at : at + size])[-counted:]) for at in range(0, len(ranked), size)]
    kept = sorted(range(groups.count), key=lambda group: -round(worth[group], 6))[: groups.top]
    allowed = [expert for expert in range(len(ranked)) if expert // size in kept]
    return sorted(allowed, key=lambda expert: -round(ranked[expert], 6))[:top_k]


def _heads(tokens: int, heads: int, outputs: int, inner: int, large: bool = False) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        weight, x = (random(heads, outputs, inner) * inner**-0.5).to(dtype), random(tokens, heads, inner + 3).to(dtype)
        x = x[..., 3:]  # a view, as queries without their rotated part are
        return [fn(weight)(x)], [torch.einsum("thk,hnk->thn", x.double(), weight.double())]

    return Case("matmul.heads", f"{tokens} of {heads} heads, {inner} to {outputs}", run, large=large)
