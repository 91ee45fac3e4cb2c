"""Turns a plan and the slot table into the tensors of one step; changes neither and computes no model.

Lengths and slots come from the plan. Where a row stands comes from the device's own computed counts, because the host
may plan a step before it knows how many drafts the one before accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.base.types import Row, RowInit, StepPlan
from sgl.engine.runtime.slots import Feature, SlotTable


@dataclass(frozen=True)
class Draws:
    """The positions of a step after which a token is chosen (L of them), row by row.

    A row of kind token has one draw per draft that it verifies, and one more.
    """

    rows: tuple[int, ...]  # index into the plan's rows
    slot_ids: tuple[int, ...]
    slots: Tensor  # int64 [L], the same on the device
    positions: Tensor  # int64 [L], the place in its sequence that the chosen token takes

    def __len__(self) -> int:
        return len(self.rows)

    def using(self, feature: Feature, table: SlotTable) -> list[int]:
        """The draws whose request uses a feature."""
        users = table.users[feature]
        return [draw for draw, slot in enumerate(self.slot_ids) if slot in users] if users else []

    def take(self, draws: Sequence[int], index: Tensor | slice) -> Draws:
        """Some of the draws, by their numbers and the same on the device."""
        return Draws(
            tuple(self.rows[draw] for draw in draws),
            tuple(self.slot_ids[draw] for draw in draws),
            self.slots[index],
            self.positions[index],
        )


@dataclass(frozen=True)
class PromptSpan:
    """Prompt positions of one row whose logprobs a step brings."""

    row: int
    init: RowInit
    positions: range
    sources: range  # the T positions whose hidden states score them; the first token of a prompt has none


@dataclass(frozen=True)
class Step:
    """All that a step needs besides the model and the slot table."""

    plan: StepPlan
    batch: ForwardBatch
    draws: Draws
    prompt_spans: tuple[PromptSpan, ...]


def build_step(plan: StepPlan, table: SlotTable) -> Step:
    """Lays out an applied plan: T tokens of B rows, L draws."""
    rows = plan.rows
    q_lens = [row.num_tokens for row in rows]
    slot_ids = [row.slot for row in rows]
    cu_q = [0, *accumulate(q_lens)]
    row_of = np.repeat(np.arange(len(rows)), q_lens)
    draw_rows, draw_sources = _draws(rows, cu_q)
    offset_in = np.arange(len(row_of)) - np.array(cu_q)[row_of]
    parts = (slot_ids, q_lens, cu_q, np.array(slot_ids)[row_of], offset_in, draw_sources)
    host = [np.array(part, np.int64) for part in parts]
    slots, lens, cu, token_slots, offsets, sources = torch.split(
        table.upload(np.concatenate(host)), [len(part) for part in host]
    )
    positions = table.computed[token_slots] + offsets
    page_index, page_offset = positions // table.page_size, positions % table.page_size
    widths = [table.num_pages(group, slot_ids) for group in range(len(table.pages))]
    batch = ForwardBatch(
        input_ids=table.tokens[token_slots, positions].long(),
        positions=positions,
        cu_q=cu.int(),
        seq_lens=(table.computed[slots] + lens).int(),
        slots=slots,
        out_loc=tuple(pages[token_slots, page_index] * table.page_size + page_offset for pages in table.pages),
        page_table=tuple(
            pages[:, :width].index_select(0, slots) for pages, width in zip(table.pages, widths, strict=True)
        ),
        logit_indices=sources,
        q_lens=tuple(q_lens),
    )
    draw_slots = tuple(slot_ids[row] for row in draw_rows)
    draws = Draws(tuple(draw_rows), draw_slots, token_slots[sources], positions[sources] + 1)
    return Step(plan, batch, draws, _prompt_spans(rows, cu_q, table))


def _draws(rows: Sequence[Row], cu_q: Sequence[int]) -> tuple[list[int], list[int]]:
    """Per draw, its row and which of the T positions it follows."""
    draw_rows: list[int] = []
    sources: list[int] = []
    for index, row in enumerate(rows):
        if row.kind == "token":
            end = cu_q[index + 1]
            draw_rows += [index] * (row.num_draft + 1)
            sources += range(end - row.num_draft - 1, end)
    return draw_rows, sources


def _prompt_spans(rows: Sequence[Row], cu_q: Sequence[int], table: SlotTable) -> tuple[PromptSpan, ...]:
    users = table.users["prompt_logprobs"]
    spans = []
    for index, row in enumerate(rows if users else ()):
        if row.slot in users:
            computed, positions = table.prompt_span(row.slot, row.num_tokens)
            shift = cu_q[index] - computed - 1
            sources = range(max(positions.start, 1) + shift, positions.stop + shift)
            spans.append(PromptSpan(index, table.inits[row.slot], positions, sources))
    return tuple(spans)
