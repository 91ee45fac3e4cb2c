"""Penalties on tokens that have come before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.registry import op


@dataclass(frozen=True, slots=True)
class Sequences:
    """What came before R of the rows of logits: the tokens of a slot up to an end."""

    rows: Tensor  # int64 [R], all different
    slots: Tensor  # int64 [R]
    tokens: Tensor  # int32 [num_slots, max_len]
    ends: Tensor  # int64 [R], at least 1
    width: int  # no end is beyond

    def read(self, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens int64 ``[R, W]``, and which of them stand between begin, int64 ``[R]``, and end: bool ``[R, W]``.

        Where a place does not count its token is the row's last one: writing the same value there twice does no harm.
        """
        tokens = self.tokens[:, : self.width].index_select(0, self.slots).long()
        places, ends = torch.arange(tokens.shape[1], device=tokens.device), self.ends[:, None]
        counted = (places >= begins[:, None]) & (places < ends)
        return torch.where(counted, tokens, tokens.gather(1, ends - 1)), counted


PenalizeOutputs = Callable[[Tensor, Sequences, Tensor, Tensor, Tensor], None]
PenalizeRepetition = Callable[[Tensor, Sequences, Tensor], None]


@op("sample.penalize_outputs")
def penalize_outputs(logits: Tensor, sequences: Sequences, begins: Tensor, frequency: Tensor, presence: Tensor) -> None:
    """Takes ``frequency * count + presence`` from tokens that stand ``count`` times from ``begins``, int64 ``[R]``, on.

    logits, float32 ``[N, V]``, are changed; frequency and presence are float32 ``[R]``.
    """
    tokens, counted = sequences.read(begins)
    counts = logits.new_zeros(len(tokens), logits.shape[1]).scatter_add_(1, tokens, counted.float()).gather(1, tokens)
    rows = sequences.rows[:, None]
    logits[rows, tokens] = logits[rows, tokens] - frequency[:, None] * counts - presence[:, None] * (counts > 0)


@op("sample.penalize_repetition")
def penalize_repetition(logits: Tensor, sequences: Sequences, penalty: Tensor) -> None:
    """Divides logits of tokens that have come by the penalty, float32 ``[R]``, where positive; multiplies the others.

    logits, float32 ``[N, V]``, are changed.
    """
    tokens, _ = sequences.read(torch.zeros_like(sequences.ends))
    rows, factors = sequences.rows[:, None], penalty[:, None]
    values = logits[rows, tokens]
    logits[rows, tokens] = torch.where(values > 0, values / factors, values * factors)
