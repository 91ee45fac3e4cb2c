"""From a step's tokens to the first hidden states, and the head that turns the last ones into scores of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.nn.linear import prepare
from sgl.engine.nn.norm import Norm
from sgl.engine.nn.spec import ModelSpec
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
        self.format = ""
        self._build = build
        self._embedding = embedding
        self._run: LinearFn
        build.leaves.append(self)

    def finalize(self) -> None:
        prepared = prepare(self._build, self._build.names.head, self._embedding.table, None, "float32")
        self._run, self.format = prepared.run, prepared.format
        self.nbytes = self._run.packed_bytes

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._run(hidden)


class Inputs:
    """``norm(scale * table[token] + position + token type)``, of which a model has the parts that its spec names."""

    def __init__(self, build: Build, spec: ModelSpec) -> None:
        names, size = build.names, spec.hidden_size
        self.embedding = Embedding(build, names.embedding, spec.vocab_size, size)
        self._parts: list[Callable[[Tensor, ForwardBatch], Tensor]] = []
        if spec.embedding_scale is not None:
            # as the models were trained: the scale is a number of their precision
            self._scale = float(torch.tensor(spec.embedding_scale, dtype=build.dtype))
            self._parts.append(lambda x, batch: x.mul_(self._scale))
        self._parts.append(_put_given)
        if spec.learned_positions:
            self._offset = spec.position_offset
            self._positions = Embedding(build, names.positions, spec.max_positions + self._offset, size)
            self._parts.append(self._add_positions)
        if spec.num_token_types:
            self._token_types = Embedding(build, names.token_types, spec.num_token_types, size)
            self._parts.append(self._add_types)
        if spec.embedding_norm:
            self._norm = Norm(build, names.embedding_norm, spec.norm, size)
            self._parts.append(lambda x, batch: self._norm(x))

    def __call__(self, batch: ForwardBatch) -> Tensor:
        """A new ``[T, H]``."""
        x = self.embedding(batch.input_ids)
        for part in self._parts:
            x = part(x, batch)
        return x

    def _add_positions(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        return x.add_(self._positions(batch.positions + self._offset if self._offset else batch.positions))

    def _add_types(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """Without types all tokens are of the first one."""
        return x.add_(self._token_types.table[0] if batch.token_types is None else self._token_types(batch.token_types))


def _put_given(x: Tensor, batch: ForwardBatch) -> Tensor:
    """Embeddings that a request brought take the place of those of its tokens."""
    if batch.embeds is not None:
        places, values = batch.embeds
        x.index_copy_(0, places, values.to(x.dtype))
    return x
