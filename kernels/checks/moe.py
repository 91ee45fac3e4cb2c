"""Cases of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.checks.case import Case, product, random
from sgl.kernels.checks.stored import FORMATS, Format
from sgl.kernels.ops.linear import linear
from sgl.kernels.ops.moe import Scoring
from sgl.kernels.registry import partner

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
    for index, format in enumerate(FORMATS):
        for tokens in (1, 5 + index, 40):
            yield _stored_ups(format, tokens, 4, 2, 160, 24)
            yield _stored_downs(format, tokens, 4, 2, 96)
    yield _stored_ups(FORMATS[0], 0, 4, 2, 32, 64)
    for tokens in (1, 64, 2048):
        yield _experts(tokens, 16, 4, 2048, 768, large=True)
        yield from (_stored_ups(format, tokens, 16, 4, 2048, 768, large=True) for format in FORMATS)


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
        x, weights, chosen = _routed(tokens, hidden, experts, top_k, dtype)
        got = joined(x, weights, chosen)
        made = [
            product(x.double(), up.double(), bias, "gated") @ down.double().t()
            for up, down in zip(ups, downs, strict=True)
        ]
        return [got], [_mixed(made, weights, chosen)]

    name = f"{tokens}x{hidden}x{inner}{'+b' if biased else ''}, {top_k} of {experts}"
    return Case("moe.experts", name, run, large=large)


def _stored_ups(
    format: Format, tokens: int, experts: int, top_k: int, hidden: int, inner: int, large: bool = False
) -> Case:
    """Of weights in a checkpoint's format, with plain ones behind them."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        ups = [format.make(2 * inner, hidden) for _ in range(experts)]
        downs = [(random(hidden, inner) * inner**-0.5).to(dtype) for _ in range(experts)]
        prepare = partner(fn, format.op)
        joined = fn([prepare(up.weight, None, "gated") for up in ups], [linear(down, None, "plain") for down in downs])
        x, weights, chosen = _routed(tokens, hidden, experts, top_k, dtype)
        got = joined(x, weights, chosen)
        made = [
            product(up.seen(x), up.numbers, None, "gated") @ down.double().t()
            for up, down in zip(ups, downs, strict=True)
        ]
        return [got], [_mixed(made, weights, chosen)]

    return Case("moe.experts", f"up {format.name} {tokens}x{hidden}x{inner}, {top_k} of {experts}", run, large=large)


def _stored_downs(format: Format, tokens: int, experts: int, top_k: int, inner: int) -> Case:
    """The other way round. The first layers let inputs through to the last bit, since formats round what comes next."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        opener, own = torch.zeros(inner, 1 + inner), torch.eye(inner) / 32
        opener[:, 0] = 32  # whose silu is 32 again
        up = torch.cat((opener, torch.nn.functional.pad(own, (1, 0)))).to(dtype)
        downs = [format.make(1 + inner, inner) for _ in range(experts)]
        prepare = partner(fn, format.op)
        joined = fn([linear(up, None, "gated")] * experts, [prepare(down.weight, None, "plain") for down in downs])
        x, weights, chosen = _routed(tokens, 1 + inner, experts, top_k, dtype)
        x[:, 0] = 1
        got = joined(x, weights, chosen)
        return [got], [_mixed([down.seen(x[:, 1:]) @ down.numbers.t() for down in downs], weights, chosen)]

    return Case("moe.experts", f"down {format.name} {tokens}x{inner}, {top_k} of {experts}", run)


def _routed(tokens: int, hidden: int, experts: int, top_k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weights, and the experts chosen; never the last."""
    x, weights = random(tokens, hidden).to(dtype), torch.rand(tokens, top_k)
    return x, weights, torch.rand(tokens, experts - 1).argsort(1)[:, :top_k].int()


def _mixed(made: Sequence[Tensor], weights: Tensor, chosen: Tensor) -> Tensor:
    """What every expert makes of all tokens, as it is chosen."""
    shares = [(weights * (chosen == expert)).sum(1, keepdim=True).double() for expert in range(len(made))]
    return torch.stack([share * part for share, part in zip(shares, made, strict=True)]).sum(0)
