"""How attention turns scores into weights, whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rules:
    """A query at position p sees the positions ``max(0, p - window + 1) .. p``; window None means all up to p.

    With a softcap a score becomes ``softcap * tanh(score / softcap)``. Sinks are the scores of one more key per head,
    which every query sees and which has no value.
    """

    scale: float  # of the products of queries and keys
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # float32 [H]
