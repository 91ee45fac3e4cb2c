"""Proposes and verifies draft tokens; how many are verified in a step is the plan's decision."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sgl.engine.runtime.batch import Draws, Step
from sgl.engine.runtime.slots import SlotTable


class Drafter(Protocol):
    """Guesses how sequences go on. After each step it sees the slots that sampled in it."""

    num_draft: int
    """How many tokens it proposes per slot; the most that a row may verify."""

    def propose(self, table: SlotTable, draws: Draws) -> None:
        """Writes its guesses behind the known tokens of the draws' slots, from place ``computed + 1`` on."""


class NullDrafter:
    """No speculation."""

    num_draft = 0

    def propose(self, table: SlotTable, draws: Draws) -> None:
        pass


NO_DRAFTS = NullDrafter()


def count_rejected(step: Step, token_ids: Tensor, table: SlotTable) -> Tensor:
    """How many drafts of each row do not hold, int64 [B]: the first that is not what was sampled in its place, and on.

    Since the random number of a draw depends on nothing but its place, the tokens that this accepts are those that
    decoding one by one would have sampled, at any temperature.

    Args:
        token_ids: int64 [L], what was sampled.
    """
    rows, draws, batch = step.plan.rows, step.draws, step.batch
    rejected = torch.zeros(len(rows), dtype=torch.int64, device=token_ids.device)
    if not any(row.num_draft for row in rows):
        return rejected
    firsts = np.searchsorted(draws.rows, draws.rows, side="left")
    is_last = np.append(np.diff(draws.rows) > 0, True)
    row_of, first, last = table.upload(np.stack([draws.rows, firsts, is_last])).unbind(0)
    drafts = batch.input_ids[(batch.logit_indices + 1).clamp_(max=len(batch.input_ids) - 1)]
    wrong = ((token_ids != drafts) & (last == 0)).long()
    num_wrong = wrong.cumsum(0)
    num_wrong -= num_wrong[first] - wrong[first]  # within the row, up to and including each draw
    return rejected.index_add_(0, row_of, ((num_wrong > 0) & (last == 0)).long())
