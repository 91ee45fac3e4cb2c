"""Cases of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.checks.case import Case, product, random
from sgl.kernels.ops.linear import linear
from sgl.kernels.ops.moe import Scoring

Answer = tuple[list[Tensor], list[Tensor]]
_SCORINGS: tuple[Scoring, ...] = ("softmax", "sigmoid")


def cases() -> Iterator[Case]:
    for tokens, experts, top_k in ((0, 8, 2), (1, 8, 2), (5, 60, 4)):
        for scoring in _SCORINGS:
            yield from (_route(tokens, experts, top_k, scoring, renormalize) for renormalize in (False, True))
    for tokens, experts, top_k in ((0, 4, 2), (1, 8, 2), (5, 60, 4), (40, 4, 2)):
        yield _experts(tokens, experts, top_k, 48, 40)
    yield from (_experts(tokens, 4, 2, 16, 24, biased=True) for tokens in (0, 3, 300))
    yield _experts(2, 4, 1, 5, 3)
    for tokens in (1, 64, 2048):
        yield _experts(tokens, 16, 4, 2048, 768, large=True)


def _route(tokens: int, experts: int, top_k: int, scoring: Scoring, renormalize: bool) -> Case:
    """Every second expert ties with the one before it."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits = random(tokens, experts // 2).float().repeat_interleave(2, 1)
        weights, chosen = fn(logits, top_k, scoring, renormalize)
        exact = logits.double()
        scores = exact.softmax(-1) if scoring == "softmax" else exact.sigmoid()
        order = scores.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
        wanted = scores.gather(1, order)
        wanted = wanted / wanted.sum(-1, keepdim=True) if renormalize else wanted
        assert weights.dtype == torch.float32 and chosen.dtype == torch.int32 and torch.equal(chosen.long(), order)
        return [weights], [wanted]

    name = f"{scoring}{' renormalized' if renormalize else ''} {top_k} of {experts} for {tokens}"
    return Case("moe.route", name, run, torch.float32)


def _experts(
    tokens: int, experts: int, top_k: int, hidden: int, inner: int, biased: bool = False, large: bool = False
) -> Case:
    """The last expert is never chosen."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        ups = [(random(2 * inner, hidden) * hidden**-0.5).to(dtype) for _ in range(experts)]
        downs = [(random(hidden, inner) * inner**-0.5).to(dtype) for _ in range(experts)]
        bias = random(2 * inner).to(dtype) if biased else None
        joined = fn([linear(up, bias, "gated") for up in ups], [linear(down, None, "plain") for down in downs])
        x, weights = random(tokens, hidden).to(dtype), torch.rand(tokens, top_k)
        chosen = torch.rand(tokens, experts - 1).argsort(1)[:, :top_k].int()
        got = joined(x, weights, chosen)
        wanted = torch.zeros(tokens, hidden, dtype=torch.float64)
        for expert, (up, down) in enumerate(zip(ups, downs, strict=True)):
            share = (weights * (chosen == expert)).sum(1, keepdim=True).double()
            wanted += share * (product(x.double(), up.double(), bias, "gated") @ down.double().t())
        return [got], [wanted]

    name = f"{tokens}x{hidden}x{inner}{'+b' if biased else ''}, {top_k} of {experts}"
    return Case("moe.experts", name, run, large=large)
