"""Tables looked up by token or position, and the head that turns hidden states back into scores of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sgl.engine.nn.linear import format_name, prepare
from sgl.engine.nn.weights import Build, WeightSlot
from sgl.kernels.ops.linear import LinearFn


class Embedding:
    """Rows of a table ``[num_rows, H]``."""

    def __init__(self, build: Build, name: str, num_rows: int, size: int) -> None:
        self.slots = [WeightSlot(f"{name}.weight", (num_rows, size), build.parameter(num_rows, size))]
        self.nbytes = 0
        self.table = torch.empty(0)
        self._lookup: Callable[[Tensor, Tensor], Tensor] = build.kernels["embedding"]
        build.leaves.append(self)

    def finalize(self) -> None:
        self.table = self.slots[0].destination.take()
        self.nbytes = self.table.nbytes

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 ``[T]`` -> a new ``[T, H]``."""
        return self._lookup(ids, self.table)


class TiedHead:
    """Multiplies by the embedding's table. Where kernels want a packed layout, that layout is a second copy of it."""

    def __init__(self, build: Build, embedding: Embedding) -> None:
        self.slots: list[WeightSlot] = []
        self.nbytes = 0
        self.format = format_name(build, build.names.head)
        self._build = build
        self._embedding = embedding
        self._run: LinearFn
        build.leaves.append(self)

    def finalize(self) -> None:
        self._run = prepare(self._build, self._build.names.head, self._embedding.table, None, "float32")
        self.nbytes = self._run.packed_bytes

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._run(hidden)


class Positions(Protocol):
    """What the position of a token adds to its embedding."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor: ...


class NoPositions:
    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        return x


class LearnedPositions:
    def __init__(self, build: Build, name: str, num_positions: int, size: int) -> None:
        self._embedding = Embedding(build, name, num_positions, size)

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        return x.add_(self._embedding(positions))
