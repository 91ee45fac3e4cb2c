"""From a step's tokens to the first hidden states, and the head that turns the last ones into scores of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.nn.linear import op_of, prepare
from sgl.engine.nn.norm import Norm
from sgl.engine.nn.spec import ModelSpec
from sgl.engine.nn.weights import Build, StackedWeight, WeightSlot
from sgl.kernels.ops.linear import LinearFn, StoredWeight, Weight, dequantized


class Embedding:
    """Rows of a table ``[num_rows, H]``.

    Args:
        is_shared: whether a head will multiply by it.

    Attributes:
        lookup: the op.
        stored: the numbers of a quantized table until the head that shares it takes them.
    """

    def __init__(self, build: Build, name: str, num_rows: int, size: int, is_shared: bool = False) -> None:
        self._weight = StackedWeight((num_rows, size), build.dtype, build.device)
        self._dtype, self._is_shared = build.dtype, is_shared
        self.slots = [WeightSlot(f"{name}.weight", (num_rows, size), self._weight)]
        self.stored: StoredWeight | None = None
        self.nbytes = 0
        self.table = torch.empty(0)
        self.lookup: Callable[[Tensor, Tensor], Tensor] = build.kernels["embedding"]
        build.leaves.append(self)

    def finalize(self) -> None:
        weight = self._weight.take_weight()
        self.table = dequantized(weight).to(self._dtype)
        self.stored = weight if self._is_shared and not isinstance(weight, Tensor) else None
        self.nbytes = self.table.nbytes

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 ``[T]`` -> a new ``[T, H]``."""
        return self.lookup(ids, self.table)


class TiedHead:
    """Multiplies by the embedding's table, or by the stored numbers of a quantized one where a kernel takes them. Where
    kernels want a packed layout, that layout is a second copy of it.

    Attributes:
        state: the op with its weight.
    """

    def __init__(self, build: Build, embedding: Embedding) -> None:
        self.slots: list[WeightSlot] = []
        self.nbytes = 0
        self.format = ""
        self._build = build
        self.name = build.names.head
        self.embedding = embedding
        self.state: LinearFn
        build.leaves.append(self)

    def finalize(self) -> None:
        weight: Weight = self.embedding.table
        stored, self.embedding.stored = self.embedding.stored, None
        if stored is not None and op_of(stored, self._build) != "linear":
            weight = stored
        prepared = prepare(self._build, self.name, weight, None, "float32")
        self.state, self.format = prepared.run, prepared.format
        self.nbytes = self.state.packed_bytes

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.state(hidden)


class Inputs:
    """``norm(scale * table[token] + position + token type)``, of which a model has the parts that its spec names."""

    def __init__(self, build: Build, spec: ModelSpec) -> None:
        names, size = build.names, spec.hidden_size
        is_shared = spec.tied_head and spec.pooling is None
        self.embedding = Embedding(build, names.embedding, spec.vocab_size, size, is_shared)
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
