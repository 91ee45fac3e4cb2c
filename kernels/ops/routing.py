"""Choice of experts among those of a token's best groups, with scores that a bias may correct for the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sgl.kernels.ops.moe import Scoring
from sgl.kernels.registry import op

LEAST_TOTAL = 1e-20
"""Added to a sum of scores that is divided by: all of them may be too small to tell from zero."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Experts stand in ``count`` groups of equal size, and a token takes those of its ``top`` best."""

    count: int
    top: int


RouteGroups = Callable[[Tensor, Tensor | None, int, Groups, Scoring, bool, float], tuple[Tensor, Tensor]]


@op("moe.route_groups")
def route_groups(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: Groups,
    scoring: Scoring,
    renormalize: bool,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """The best experts of the best groups of every token, the best first and of equals the first.

    Args:
        logits: float32 ``[T, E]``.
        bias: float32 ``[E]``, added to the scores for the choice only. With it a group is as good as the sum of its two
            best experts, without it as its best one.
        scoring: how logits become scores: all experts' together, or each by itself.
        renormalize: whether the scores of the chosen add up to one before they are multiplied by ``factor``.

    Returns:
        Their scores, float32 ``[T, top_k]``, and who they are, int32 ``[T, top_k]``.
    """
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    ranked = scores if bias is None else scores + bias
    grouped = ranked.view(len(ranked), groups.count, ranked.shape[1] // groups.count)
    worth = grouped.amax(-1) if bias is None else grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
    worst = worth.sort(dim=-1, descending=True, stable=True).indices[:, groups.top :]
    hidden = grouped.new_zeros(worth.shape).scatter_(1, worst, 1).bool()
    ranked = grouped.masked_fill(hidden[..., None], float("-inf")).flatten(1)
    chosen = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, chosen)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + LEAST_TOTAL)
    return weights * factor, chosen.int()
