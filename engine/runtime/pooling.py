"""Follows sequences over the steps that compute them and turns each into its vector at the end; it samples nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.base.types import Row
from sgl.engine.runtime.batch import Step
from sgl.engine.runtime.slots import SlotTable


class Head(Protocol):
    """What a model makes of hidden states; see `engine.nn.pooling.PoolingHead`."""

    @property
    def hidden_size(self) -> int: ...

    def gather(self, hidden: Tensor, is_first: bool) -> Tensor: ...

    def finish(self, total: Tensor, last: Tensor, num_tokens: int, dimensions: int | None) -> Tensor: ...


@dataclass(frozen=True)
class Pooled:
    """The vector of one row: float32, as many entries as were asked for."""

    row: int
    vector: Tensor


class Pooler:
    """Pools the rows of a model that has ``head``; the requests of any other have nothing to pool."""

    def __init__(self, head: Head | None, table: SlotTable) -> None:
        self._head = head
        self._table = table
        size = head.hidden_size if head is not None else 0
        self._totals = torch.zeros(len(table.computed), size, dtype=torch.float32, device=table.device)

    def with_types(self, step: Step) -> ForwardBatch:
        """The batch of a step with the segment of every token, where one of its rows holds two texts."""
        if self._head is None:
            return step.batch
        rows = step.plan.rows
        seconds = [self._second_from(row) for row in rows]
        if all(second is None for second in seconds):
            return step.batch
        types = np.zeros(sum(row.num_tokens for row in rows), np.int64)
        for row, start, second in zip(rows, _starts(rows), seconds, strict=True):
            if second is not None:
                types[start + second : start + row.num_tokens] = 1
        return replace(step.batch, token_types=self._table.upload(types))

    def pool(self, step: Step, hidden: Tensor) -> tuple[Pooled, ...]:
        """Takes in a step's hidden states ``[T, H]``; the vectors of the rows that it completes."""
        return tuple(self._pool(step.plan.rows, hidden)) if self._head is not None else ()

    def _pool(self, rows: Sequence[Row], hidden: Tensor) -> Iterator[Pooled]:
        assert self._head is not None
        for index, (row, start) in enumerate(zip(rows, _starts(rows), strict=True)):
            init = self._table.inits[row.slot]
            if init.pooling is None:
                continue
            part, total = hidden[start : start + row.num_tokens], self._totals[row.slot]
            if row.init is not None:
                total.zero_()
            total += self._head.gather(part, is_first=row.init is not None)
            if row.kind == "pool":
                dimensions = init.pooling.dimensions
                yield Pooled(index, self._head.finish(total, part[-1], init.num_prompt, dimensions))

    def _second_from(self, row: Row) -> int | None:
        """Where a row's second text begins. Only encoders tell it, whose rows are whole prompts."""
        pooling = self._table.inits[row.slot].pooling
        return None if pooling is None else pooling.second_from


def _starts(rows: Sequence[Row]) -> list[int]:
    """Which of the T positions each row begins at."""
    return [0, *accumulate(row.num_tokens for row in rows)][:-1]
