"""Tokens drawn at random from filtered distributions.

Each filter comes down to a least probability: what is as likely as the last token that stays, stays too, so the outcome
does not hang on the order in which a sort leaves ties. What is summed over the vocabulary once there are probabilities
is integers: such sums are exact, so neither a filter nor a draw depends on the order in which a device adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgl.kernels.ops.random import uniform
from sgl.kernels.registry import op

Filter = Literal["top_k", "top_p", "min_p"]

ONE_BITS = 40
"""The integer that stands for probability 1 has so many zero bits; a vocabulary of 2**22 cannot overflow a sum."""

_ONE = 1 << ONE_BITS

_DIGITS = ((20, 11), (10, 10), (0, 10))
"""(shift, width) of the digits of a non-negative float's 31 bits, most significant first."""


@dataclass(frozen=True, slots=True)
class Filters:
    """How N draws change the distribution of their logits; one number each, ``[N]``."""

    temperature: Tensor  # float32, positive
    top_k: Tensor  # int64; below 1 or beyond the vocabulary it filters nothing
    top_p: Tensor  # float32; 1 and above filter nothing
    min_p: Tensor  # float32; 0 filters nothing
    users: Mapping[Filter, Sequence[int]]  # the draws that each filter concerns, in order
    most: int  # the greatest top_k of those


Draw = Callable[[Tensor, Filters, Tensor, Tensor], Tensor]


@op("sample.draw")
def draw(logits: Tensor, filters: Filters, streams: Tensor, counters: Tensor) -> Tensor:
    """Inverts the cumulative distribution of every row at one random number.

    Args:
        logits: float32 ``[N, V]``, not changed.
        streams, counters: int64 ``[N]``, see `uniform`.

    Returns:
        int64 ``[N]``; any token where logits are NaN.
    """
    cumulative = weights(logits, filters).cumsum(-1)
    targets = (uniform(streams, counters)[:, None] * cumulative[:, -1:]).long()
    found = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return found.clamp_(max=logits.shape[1] - 1)


def weights(logits: Tensor, filters: Filters) -> Tensor:
    """The filtered distributions, times a constant: int64 ``[N, V]``."""
    probs = (logits / filters.temperature[:, None]).softmax(-1)
    if not any(filters.users.values()):
        return _integers(probs)
    floors = probs.new_zeros(len(probs), 1)
    top_k, top_p = filters.users["top_k"], sorted(set(filters.users["top_p"]).difference(filters.users["top_k"]))
    if top_k:
        rows = _index(top_k, probs)
        floors[rows] = top_k_floors(probs[rows], filters.top_k[rows], filters.most, filters.top_p[rows])
    if top_p:
        rows = _index(top_p, probs)
        floors[rows] = top_p_floors(probs[rows], filters.top_p[rows])
    if filters.users["min_p"]:
        floors = torch.maximum(floors, probs.amax(-1, keepdim=True) * filters.min_p[:, None])
    keep = torch.ge(probs, floors, out=torch.empty_like(probs))  # as float: selecting by booleans is slow on CPUs
    return _integers(probs.mul_(keep))


def top_k_floors(probs: Tensor, top_k: Tensor, most: int, top_p: Tensor) -> Tensor:
    """The least probability that stays under top-k and top-p together, without looking past the ``most`` likely ones.

    Args:
        probs: float32 ``[N, V]``.
        top_k: int64 ``[N]``, at most ``most``.
        top_p: float32 ``[N]``; 1 and above filter nothing.

    Returns:
        float32 ``[N, 1]``.
    """
    values = probs.topk(most, dim=-1).values
    shares = _integers(values)
    before = shares.cumsum(-1) - shares
    staying = (before <= _limits(top_p)) & (torch.arange(most, device=probs.device) < top_k[:, None])
    return values.gather(1, staying.sum(1, keepdim=True).sub_(1))


def top_p_floors(probs: Tensor, top_p: Tensor) -> Tensor:
    """The least probability that stays under top-p: that of the last token to have at most ``top_p`` before it.

    Found digit by digit of its binary form with a histogram each, which costs a small part of a sort.

    Args:
        probs: float32 ``[N, V]``.
        top_p: float32 ``[N]``.

    Returns:
        float32 ``[N, 1]``.
    """
    shares, bits, limits = _integers(probs), probs.view(torch.int32), _limits(top_p)
    total = shares.sum(-1, keepdim=True)
    found = torch.zeros_like(limits, dtype=torch.int32)
    for shift, width in _DIGITS:
        first, num_bins = found << width, 1 << width
        bins = ((bits >> shift) - (first - 1)).clamp_(0, num_bins + 1)  # what lies below is in bin 0, above in the last
        histogram = shares.new_zeros(len(probs), num_bins + 2).scatter_add_(1, bins.long(), shares)
        above = total - histogram.cumsum(1)
        found = first - 1 + (above > limits).sum(1, keepdim=True, dtype=torch.int32).clamp_(min=1)
    return found.view(torch.float32)


def _integers(probs: Tensor) -> Tensor:
    return (probs * _ONE).long()


def _limits(top_p: Tensor) -> Tensor:
    """float32 ``[N]`` -> int64 ``[N, 1]``; more than everything where all may stay."""
    return torch.where(top_p < 1.0, top_p * _ONE, 2.0 * _ONE).long()[:, None]


def _index(rows: Sequence[int], probs: Tensor) -> Tensor | slice:
    """``rows`` as an index that copies nothing if that is all of them; a GPU is not waited for."""
    if len(rows) == len(probs):
        return slice(None)
    index = torch.tensor(rows)
    return index if probs.device.type == "cpu" else index.pin_memory().to(probs.device, non_blocking=True)
