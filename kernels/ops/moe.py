"""Mixtures of experts: which experts see a token, and what they make of it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sgl.kernels.ops.linear import LinearFn
from sgl.kernels.registry import op

Scoring = Literal["softmax", "sigmoid"]

Route = Callable[[Tensor, int, Scoring, bool], tuple[Tensor, Tensor]]


@op("moe.route")
def route(logits: Tensor, top_k: int, scoring: Scoring, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The best experts of every token, the best first and of equals the first.

    Args:
        logits: float32 ``[T, E]``.
        scoring: how logits become scores: all experts' together, or each by itself.
        renormalize: whether the scores of the chosen add up to one.

    Returns:
        Their scores, float32 ``[T, top_k]``, and who they are, int32 ``[T, top_k]``.
    """
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    chosen = scores.sort(dim=-1, descending=True, stable=True)
    weights = chosen.values[:, :top_k]
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.contiguous(), chosen.indices[:, :top_k].int()


class ExpertsFn(Protocol):
    """``sum over j of weights[t, j] * down(up(x[t]))`` of expert ``chosen[t, j]``; ``[T, H] -> [T, H]``."""

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ExpertByExpert:
    """Every expert computes its tokens at once; a token's sum is taken in the order of the experts."""

    ups: Sequence[LinearFn]
    downs: Sequence[LinearFn]

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        of_expert, top_k = chosen.flatten(), chosen.shape[1]
        order = of_expert.argsort(stable=True)
        counts = of_expert.bincount(minlength=len(self.ups)).tolist()
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for up, down, part in zip(self.ups, self.downs, torch.split(order, counts), strict=True):
            if len(part):
                tokens = part // top_k
                out.index_add_(0, tokens, down(up(x[tokens])).float().mul_(weights.flatten()[part, None]))
        return out.to(x.dtype)


@op("moe.experts")
def experts(ups: Sequence[LinearFn], downs: Sequence[LinearFn]) -> ExpertsFn:
    """Joins E experts, each a linear layer in its form ``gated`` and one behind it."""
    return ExpertByExpert(ups, downs)
