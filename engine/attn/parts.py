"""Cuts a step into the parts that FlashInfer's wrappers compute, and lays out what they plan from; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.attn.prefixes import Prefix
from sgl.engine.base.device import Device
from sgl.kernels.flashinfer.attention import SHORT_TOKENS, Role, Rows


@dataclass(frozen=True)
class Part:
    """Some rows of a step, which one wrapper computes.

    Attributes:
        table: the step's page table of one KV group.
        skipped: pages at the beginning of each row that another part computes.
        tokens: int64, which of the step's T are theirs; None: all.
        row_ids: int64, which rows of the table are theirs; None: all.
        prefix: the part that computes what the first of these tokens skip.
        into: where the pages go, if they have a place.
    """

    device: Device
    role: Role
    q_lens: np.ndarray
    seq_lens: np.ndarray
    table: Tensor
    page_size: int
    skipped: np.ndarray | int = 0
    tokens: Tensor | None = None
    row_ids: Tensor | None = None
    prefix: Part | None = None
    into: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.q_lens.sum())

    @cached_property
    def rows(self) -> Rows:
        """What wrappers plan from."""
        num_pages = -(-self.seq_lens // self.page_size)
        qo_indptr, kv_indptr = _starts(self.q_lens), _starts(num_pages - self.skipped)
        last_page_len = self.seq_lens - (num_pages - 1) * self.page_size
        arrays = (qo_indptr, kv_indptr, last_page_len, self.seq_lens - self.skipped * self.page_size)
        host = self.device.host_buffer(4 * sum(map(len, arrays))).view(torch.int32)
        host.copy_(torch.from_numpy(np.concatenate(arrays)))
        total, width = int(kv_indptr[-1]), int(num_pages.max())
        into = torch.empty(total + 1, dtype=torch.int32, device=self.table.device) if self.into is None else self.into
        table = self.table if self.row_ids is None else self.table.index_select(0, self.row_ids)
        places = np.stack((kv_indptr[:-1] - self.skipped, kv_indptr[:-1], kv_indptr[1:]))
        _flatten(table[:, :width], self.device.upload([places])[0], into)
        qo, kv, last, lens = torch.split(host, [len(array) for array in arrays])
        return Rows(qo, kv, last, lens, into[:total], int(self.q_lens.max()))


def role_of(q_len: int) -> Role:
    """What rows of so many tokens are to FlashInfer."""
    return "decode" if q_len == 1 else "short" if q_len <= SHORT_TOKENS else "long"


def cut(device: Device, batch: ForwardBatch, group: int, page_size: int, prefixes: Sequence[Prefix]) -> list[Part]:
    """The rows of a step by their roles; those of prefixes come first among the decoding ones."""
    assert batch.host is not None
    q_lens, seq_lens, table = np.array(batch.q_lens, np.int64), batch.host.seq_lens, batch.page_table[group]
    rows = _by_role(q_lens)
    if len(rows) == 1 and not prefixes and q_lens.all():
        return [Part(device, next(iter(rows)), q_lens, seq_lens, table, page_size)]
    leaders = np.array([prefix.rows[0] for prefix in prefixes], np.int64)
    skipped = np.zeros(len(q_lens), np.int64)
    if prefixes:
        first = np.concatenate([prefix.rows for prefix in prefixes])
        skipped[first] = np.repeat([prefix.num_pages for prefix in prefixes], [len(p.rows) for p in prefixes])
        rows["decode"] = np.concatenate((first, np.setdiff1d(rows["decode"], first)))
    tokens = [_tokens(q_lens, ids) for ids in rows.values()]
    uploaded = device.upload([*tokens, *rows.values(), *([leaders] if prefixes else [])])
    shared = None
    if prefixes:
        counts = np.array([len(prefix.rows) for prefix in prefixes])
        lengths = np.array([prefix.num_pages for prefix in prefixes]) * page_size
        shared = Part(device, "prefix", counts, lengths, table, page_size, row_ids=uploaded[-1])
    return [
        Part(
            *(device, role, q_lens[ids], seq_lens[ids], table, page_size, skipped[ids]),
            *(uploaded[n], uploaded[len(rows) + n], shared if role == "decode" else None),
        )
        for n, (role, ids) in enumerate(rows.items())
    ]


def _by_role(q_lens: np.ndarray) -> dict[Role, np.ndarray]:
    """The rows of every role that has any."""
    chosen: dict[Role, np.ndarray] = {
        "decode": q_lens == 1,
        "short": (q_lens > 1) & (q_lens <= SHORT_TOKENS),
        "long": q_lens > SHORT_TOKENS,
    }
    return {role: np.flatnonzero(mask) for role, mask in chosen.items() if mask.any()}


def _tokens(q_lens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which of a step's tokens are those of some rows, row after row."""
    counts = q_lens[rows]
    firsts = (q_lens.cumsum() - q_lens)[rows] - (counts.cumsum() - counts)
    return np.repeat(firsts, counts) + np.arange(counts.sum())


def _flatten(table: Tensor, places: Tensor, into: Tensor) -> None:
    """Writes the pages of all rows of a table one after the other.

    What a table holds before and behind a row's own pages goes to the last place of ``into``, which nobody reads.

    Args:
        places: int64 [3, B], where each row's first column would go, where its pages begin, and where they end.
    """
    origin, begin, end = places[:, :, None]
    place = origin + torch.arange(table.shape[1], device=table.device)
    place = torch.where((place >= begin) & (place < end), place, len(into) - 1)
    into.scatter_(0, place.flatten(), table.flatten())


def _starts(lengths: np.ndarray) -> np.ndarray:
    """int64: where each of consecutive ranges starts, and the end of the last."""
    return np.concatenate(([0], lengths.cumsum()))
