"""Applies a plan to the slot table and turns both into the tensors of one step; computes no model.

All that a plan brings goes to the device in one copy. Lengths and slots come from the plan. Where a row stands comes
from the device's own computed counts, because the host may plan a step before it knows how many drafts the one before
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, HostRows
from sgl.engine.base.types import Row, RowInit, StepPlan
from sgl.engine.runtime.slots import Feature, SlotTable, is_change
from sgl.kernels.ops.decode import Located


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
class HiddenSpan:
    """Positions of one row whose hidden states are wanted: a range of the step's T."""

    row: int
    positions: range


class Fixed(Protocol):
    """The tensors of a captured computation, which stay where they are: those of the step's rows among them."""

    @property
    def batch(self) -> ForwardBatch: ...

    @property
    def next_positions(self) -> Tensor:
        """int64 [T], of the tokens that will follow each position."""


@dataclass(frozen=True)
class Step:
    """All that a step needs besides the model and the slot table.

    In a step that ``is_decode`` every row is one token that another follows, so T, B and L are the same rows.
    """

    plan: StepPlan
    is_decode: bool
    batch: ForwardBatch
    draws: Draws
    prompt_spans: tuple[PromptSpan, ...]
    hidden_spans: tuple[HiddenSpan, ...]
    fixed: Fixed | None = None  # whose tensors the batch has


@dataclass(frozen=True)
class HostLayout:
    """What follows from the rows of a plan alone, and so stays while the same rows come again (as in decoding)."""

    rows: tuple[Row, ...]
    slot_ids: list[int]
    q_lens: tuple[int, ...]
    cu_q: list[int]
    draw_rows: tuple[int, ...]
    draw_slots: tuple[int, ...]
    sources: list[int]
    num_tokens: int
    shape: list[tuple[int, int, int, str]]

    @classmethod
    def of(cls, rows: tuple[Row, ...]) -> HostLayout:
        q_lens = tuple(row.num_tokens for row in rows)
        slot_ids = [row.slot for row in rows]
        cu_q = [0, *accumulate(q_lens)]
        draw_rows, sources = _draws(rows, cu_q)
        draw_slots = tuple(slot_ids[row] for row in draw_rows)
        return cls(rows, slot_ids, q_lens, cu_q, tuple(draw_rows), draw_slots, sources, cu_q[-1], _shape(rows))

    @property
    def q_len(self) -> int:
        """Tokens of every row if all have as many and a token is chosen after each of them; 0 otherwise."""
        first = self.q_lens[0] if self.rows else 0
        is_uniform = len(self.sources) == self.num_tokens == first * len(self.rows)
        return first if is_uniform and self.q_lens.count(first) == len(self.q_lens) else 0

    def arrays(self) -> list[np.ndarray]:
        """What the device must know of it, in the order of the tensors of `Layout`."""
        row_of = np.repeat(np.arange(len(self.rows)), self.q_lens)
        offsets = np.arange(self.num_tokens) - np.array(self.cu_q)[row_of]
        slots = np.array(self.slot_ids, np.int64)
        lens, sources = np.array(self.q_lens, np.int64), np.array(self.sources, np.int64)
        return [np.array(self.cu_q, np.int32), slots, lens, slots[row_of], offsets, sources]


@dataclass(frozen=True)
class Layout:
    """The rows of a plan, on the host and on the device."""

    host: HostLayout
    q_len: int
    cu_q: Tensor  # int32 [B + 1]
    slots: Tensor  # int64 [B]
    lens: Tensor  # int64 [B]
    token_slots: Tensor  # int64 [T]
    offsets: Tensor  # int64 [T], of each token in its row
    sources: Tensor  # int64 [L], which of the T positions each draw follows


FindFixed = Callable[[Layout], Fixed | None]
"""The captured computation for rows of a layout, its tensors filled for them; None: there is none."""


def never(layout: Layout) -> None:
    """Nothing is captured."""


class StepBuilder:
    """Applies plans, one after the other, and lays them out; what the step before already laid out is taken from
    there."""

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._layout: Layout | None = None
        self._plain: tuple[Row, ...] = ()  # the last rows, if they change nothing in the table
        self._page_tables: tuple[Tensor, ...] = ()
        self._pages_version = -1

    def build(self, plan: StepPlan, find: FindFixed = never) -> Step:
        """The step of a plan: T tokens of B rows, L draws."""
        layout = self._lay_out(plan)
        host, table = layout.host, self._table
        embeds = _embeds(host, table)
        fixed = find(layout) if layout.q_len and embeds is None else None
        if fixed is not None:
            batch, next_positions = fixed.batch, fixed.next_positions
        else:
            batch, next_positions = self._batch(layout)
        if embeds is not None:
            batch = replace(batch, embeds=embeds)
        if table.host_view is not None:
            batch = _with_host_view(batch, host, table)
        is_decode = layout.q_len == 1
        draw_slots = layout.slots if is_decode else layout.token_slots[layout.sources]
        draws = Draws(host.draw_rows, host.draw_slots, draw_slots, next_positions)
        spans = _prompt_spans(plan.rows, host.cu_q, table)
        return Step(plan, is_decode, batch, draws, spans, _hidden_spans(plan.rows, host.cu_q, table), fixed)

    def _lay_out(self, plan: StepPlan) -> Layout:
        table, layout = self._table, self._layout
        if layout is not None and self._plain and plan.rows == self._plain:  # the scheduler repeats decodes as they are
            table.forget(plan.finished_slots)
            return layout
        self._plain = () if any(map(is_change, plan.rows)) else plan.rows
        if layout is not None and layout.host.shape == _shape(plan.rows):  # but for those that get a page
            table.apply(plan)
            return layout
        host = HostLayout.of(plan.rows)
        layout = self._layout = Layout(host, host.q_len, *table.apply(plan, host.arrays()))
        self._pages_version = -1
        return layout

    def _batch(self, layout: Layout) -> tuple[ForwardBatch, Tensor]:
        """The batch and, per draw, the position that its token takes."""
        table = self._table
        found = table.locate(layout.slots) if layout.q_len == 1 else self._locate(layout)
        batch = ForwardBatch(
            input_ids=found.input_ids,
            positions=found.positions,
            cu_q=layout.cu_q,
            seq_lens=found.seq_lens,
            slots=layout.slots,
            out_loc=found.out_loc,
            page_table=self._page_table(layout),
            logit_indices=layout.sources,
            q_lens=layout.host.q_lens,
        )
        return batch, found.next_positions

    def _locate(self, layout: Layout) -> Located:
        """As `SlotTable.locate`, for rows of any number of tokens and draws."""
        table = self._table
        positions = table.computed[layout.token_slots] + layout.offsets
        page_index, page_offset = positions // table.page_size, positions % table.page_size
        return Located(
            table.tokens[layout.token_slots, positions].long(),
            positions,
            positions[layout.sources] + 1,
            (table.computed[layout.slots] + layout.lens).int(),
            tuple(pages[layout.token_slots, page_index] * table.page_size + page_offset for pages in table.pages),
        )

    def _page_table(self, layout: Layout) -> tuple[Tensor, ...]:
        table = self._table
        if self._pages_version != table.pages_version:
            widths = [table.num_pages(group, layout.host.slot_ids) for group in range(len(table.pages))]
            self._page_tables = tuple(
                pages[:, :width].index_select(0, layout.slots) for pages, width in zip(table.pages, widths, strict=True)
            )
            self._pages_version = table.pages_version
        return self._page_tables


def _with_host_view(batch: ForwardBatch, host: HostLayout, table: SlotTable) -> ForwardBatch:
    assert table.host_view is not None
    slots = np.array(host.slot_ids)
    lens = table.host_view.advance(slots, np.array(host.q_lens), any(row.num_draft for row in host.rows))
    return batch if lens is None else replace(batch, host=HostRows(lens, slots, table.host_view.pages))


def _shape(rows: Sequence[Row]) -> list[tuple[int, int, int, str]]:
    return [(row.slot, row.num_tokens, row.num_draft, row.kind) for row in rows]


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


def _hidden_spans(rows: Sequence[Row], cu_q: Sequence[int], table: SlotTable) -> tuple[HiddenSpan, ...]:
    users = table.users["hidden"]
    return tuple(
        HiddenSpan(index, range(cu_q[index] + table.skip_hidden(row.slot, row.num_tokens), cu_q[index + 1]))
        for index, row in enumerate(rows if users else ())
        if row.slot in users
    )


def _embeds(layout: HostLayout, table: SlotTable) -> tuple[Tensor, Tensor] | None:
    """What takes the place of token embeddings in a step, None for nothing."""
    users = table.users["embeds"]
    found = [
        (layout.cu_q[index], row.slot, table.embedded_span(row.slot, row.num_tokens))
        for index, row in enumerate(layout.rows if users else ())
        if row.slot in users
    ]
    if not found:
        return None
    places = np.concatenate([np.arange(begin, begin + len(span)) for begin, _, span in found])
    values = [table.embeds[slot][span.start : span.stop] for _, slot, span in found]
    return table.upload(places), torch.cat(values)
