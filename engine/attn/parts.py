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
        row_ids: which rows of the table are theirs; None: all.
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
    row_ids: np.ndarray | None = None
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
        qo, kv, last, lens = torch.split(host, [len(array) for array in arrays])
        return Rows(qo, kv, last, lens, self._pages(kv_indptr), int(self.q_lens.max()))

    def _pages(self, starts: np.ndarray) -> Tensor:
        """The pages of all rows one after the other, of which each row's start there; nothing else of the table is
        touched, which may be wide for the sake of one row."""
        total = int(starts[-1])
        row_ids = np.arange(len(self.q_lens)) if self.row_ids is None else self.row_ids
        origins = row_ids * self.table.shape[1] + self.skipped - starts[:-1]
        counts, firsts = self.device.upload([np.diff(starts), origins])
        owners = torch.repeat_interleave(counts, output_size=total)
        places = torch.arange(total, device=self.table.device).add_(firsts.index_select(0, owners))
        if self.into is None:
            return self.table.take(places)
        return torch.take(self.table, places, out=self.into[:total])


def role_of(q_len: int) -> Role:
    """What rows of so many tokens are to FlashInfer."""
    return "decode" if q_len == 1 else "short" if q_len <= SHORT_TOKENS else "long"


def cut(
    device: Device, batch: ForwardBatch, group: int, page_size: int, prefixes: Sequence[Prefix], *, by_length: bool
) -> list[Part]:
    """The rows of a step by their roles; those of prefixes come first among the decoding ones.

    Args:
        by_length: whether rows of few and of many tokens are computed by different kernels.
    """
    assert batch.host is not None
    q_lens, seq_lens, table = np.array(batch.q_lens, np.int64), batch.host.seq_lens, batch.page_table[group]
    counts = np.array([len(prefix.rows) for prefix in prefixes], np.int64)
    num_pages = np.array([prefix.num_pages for prefix in prefixes], np.int64)
    first = np.concatenate([np.zeros(0, np.int64), *(prefix.rows for prefix in prefixes)])
    rows = _by_role(q_lens, first) if by_length else _present({"decode": first, "long": _others(q_lens, first)})
    if len(rows) == 1 and not prefixes and q_lens.all():
        return [Part(device, next(iter(rows)), q_lens, seq_lens, table, page_size)]
    skipped = np.zeros(len(q_lens), np.int64)
    skipped[first] = num_pages.repeat(counts)
    shared = None
    if prefixes:
        leaders = np.array([prefix.rows[0] for prefix in prefixes])
        shared = Part(device, "prefix", counts, num_pages * page_size, table, page_size, row_ids=leaders)
    tokens = device.upload([_tokens(q_lens, ids) for ids in rows.values()])
    return [
        Part(
            *(device, role, q_lens[ids], seq_lens[ids], table, page_size, skipped[ids]),
            *(theirs, ids, shared if role == "decode" else None),
        )
        for (role, ids), theirs in zip(rows.items(), tokens, strict=True)
    ]


def _by_role(q_lens: np.ndarray, first: np.ndarray) -> dict[Role, np.ndarray]:
    """The rows of every role that has any, some decoding ones first."""
    others = _others(q_lens, first)
    counts = q_lens[others]
    is_short = counts <= SHORT_TOKENS
    decode = np.concatenate((first, others[counts == 1]))
    return _present({"decode": decode, "short": others[is_short & (counts > 1)], "long": others[~is_short]})


def _others(q_lens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows beside some that have tokens."""
    return np.setdiff1d(np.flatnonzero(q_lens), rows)


def _present(rows: dict[Role, np.ndarray]) -> dict[Role, np.ndarray]:
    return {role: ids for role, ids in rows.items() if len(ids)}


def _tokens(q_lens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which of a step's tokens are those of some rows, row after row."""
    counts = q_lens[rows]
    firsts = (q_lens.cumsum() - q_lens)[rows] - (counts.cumsum() - counts)
    return np.repeat(firsts, counts) + np.arange(counts.sum())


def _starts(lengths: np.ndarray) -> np.ndarray:
    """int64: where each of consecutive ranges starts, and the end of the last."""
    return np.concatenate(([0], lengths.cumsum()))
