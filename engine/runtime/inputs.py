"""The tensors that captured steps read: they stay where they are, and every step writes its own numbers into them."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.runtime.batch import Layout
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.ops.decode import Located, Refill


class Inputs:
    """Inputs of uniform steps of ``q_len`` tokens a row; a capture of fewer rows reads their beginnings.

    Rows that a step does not fill stand in the table's last slot, which no request ever has: what is computed for them
    goes to a page of its own.

    Args:
        refill: the op `decode.refill`.
    """

    def __init__(self, table: SlotTable, max_rows: int, q_len: int, refill: Refill) -> None:
        device, num_tokens = table.device, max_rows * q_len
        self.q_len = q_len
        self._table = table
        self._refill = refill
        self._scratch = len(table.computed) - 1
        self._slots = torch.full((max_rows,), self._scratch, dtype=torch.int64, device=device)
        input_ids, positions, next_positions, *out_loc = torch.zeros(
            3 + len(table.pages), num_tokens, dtype=torch.int64, device=device
        )
        seq_lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._located = Located(input_ids, positions, next_positions, seq_lens, tuple(out_loc))
        self._page_tables = tuple(pages.new_zeros(max_rows, pages.shape[1]) for pages in table.pages)
        self._cu_q = torch.arange(max_rows + 1, dtype=torch.int32, device=device) * q_len
        self._sources = torch.arange(num_tokens, device=device)
        self._num_filled = 0
        self._layout: Layout | None = None

    def fill(self, layout: Layout, num_rows: int) -> None:
        """Brings the first ``num_rows`` up to date for a step that has as many or fewer."""
        count = len(layout.host.slot_ids)
        if layout is not self._layout:
            self._slots[:count].copy_(layout.slots)
            self._slots[count : max(self._num_filled, count)].fill_(self._scratch)
            self._layout, self._num_filled = layout, count
        self._locate(num_rows)

    def clear(self) -> None:
        """Leaves no row of any request: now computing with them does no harm."""
        self._slots.fill_(self._scratch)
        self._layout, self._num_filled = None, 0
        self._locate(len(self._slots))

    def batch(self, num_rows: int) -> ForwardBatch:
        """The first rows, as a step."""
        found = self._first(num_rows)
        return ForwardBatch(
            input_ids=found.input_ids,
            positions=found.positions,
            cu_q=self._cu_q[: num_rows + 1],
            seq_lens=found.seq_lens,
            slots=self._slots[:num_rows],
            out_loc=found.out_loc,
            page_table=tuple(pages[:num_rows] for pages in self._page_tables),
            logit_indices=self._sources[: num_rows * self.q_len],
            q_lens=(self.q_len,) * num_rows,
        )

    def next_positions(self, num_rows: int) -> Tensor:
        """int64 [num_rows * q_len], of the tokens that will follow."""
        return self._located.next_positions[: num_rows * self.q_len]

    def _locate(self, num_rows: int) -> None:
        table, slots = self._table, self._slots[:num_rows]
        page_tables = tuple(pages[:num_rows] for pages in self._page_tables)
        out = self._first(num_rows)
        self._refill(table.tokens, table.computed, table.pages, table.page_size, slots, self.q_len, out, page_tables)

    def _first(self, num_rows: int) -> Located:
        found, num_tokens = self._located, num_rows * self.q_len
        return Located(
            found.input_ids[:num_tokens],
            found.positions[:num_tokens],
            found.next_positions[:num_tokens],
            found.seq_lens[:num_rows],
            tuple(places[:num_tokens] for places in found.out_loc),
        )
