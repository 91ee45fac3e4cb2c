"""The model that steps run through, with its KV cache and its captures: they come and go together. Knows no plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import KVLayer
from sgl.engine.base.device import Device
from sgl.engine.runtime.batch import Fixed, Layout, Step
from sgl.engine.runtime.graphs import Eager, GraphOptions, Graphs, Runner
from sgl.engine.runtime.kv import allocate_kv
from sgl.engine.runtime.model import Model, NoModel
from sgl.engine.runtime.pooling import Pooled, Pooler
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.ops.decode import Refill


@dataclass(frozen=True)
class Installed:
    """A model and all that was made for it."""

    model: Model
    kv: tuple[KVLayer, ...]
    pooler: Pooler
    runner: Runner


class Loaded:
    """One model after the other, in the same memory.

    Attributes:
        runner: what its steps run through, captures among it.

    Args:
        table: of the slots that steps have; captures need a last one that no request has.
        num_pages: size of the KV cache, without the page that captures need.
        graphs: what is captured of the model's steps, None for nothing.
        q_lens: tokens that the rows of uniform steps have.
        refill: the op `decode.refill`.
    """

    runner: Runner
    _model: Model
    _kv: tuple[KVLayer, ...]
    _pooler: Pooler

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend[Any],
        device: Device,
        table: SlotTable,
        *,
        num_pages: int,
        graphs: GraphOptions | None,
        q_lens: Sequence[int],
        refill: Refill,
    ) -> None:
        self._backend = backend
        self._device = device
        self._table = table
        self._graphs, self._q_lens, self._refill = graphs, q_lens, refill
        self._num_pages = num_pages
        if graphs is not None:
            self._num_pages += 1
            for pages in table.pages:
                pages[-1].fill_(num_pages)
        self._install(self._made_for(model, self._make_kv(model)))

    def find(self, layout: Layout) -> Fixed | None:
        """See `sgl.engine.runtime.batch.FindFixed`."""
        return self.runner.find(layout)

    def run(self, step: Step) -> Tensor:
        """The hidden states [T, hidden] of a step, valid until the next one is run."""
        return self.runner.run(step, self._pooler.with_types(step))

    def logits(self, hidden: Tensor) -> Tensor:
        """A fresh float32 [L, V] for hidden states [L, hidden]."""
        return self._model.logits(hidden)

    def pool(self, step: Step, hidden: Tensor) -> tuple[Pooled, ...]:
        """See `Pooler.pool`."""
        return self._pooler.pool(step, hidden)

    def prepare(self) -> bool:
        """Does one thing that makes later steps faster, between steps; False if none is left."""
        return self.runner.prepare()

    def exchange(self, model: Model) -> Installed:
        """Computes with another model of the same kind from the next step on; nothing that is cached holds any more.

        Whatever it raises, nothing has changed.

        Returns:
            What was there before, for `put_back`.
        """
        before = Installed(self._model, self._kv, self._pooler, self.runner)
        self._install(self._made_for(model, self._kv or self._make_kv(model)))
        return before

    def put_back(self, before: Installed) -> None:
        """Undoes an exchange; the captures of before are there at once."""
        self._install(before)

    def release(self) -> None:
        """Frees weights and KV cache; there is no step before the next `exchange`."""
        model = NoModel(self._model.kv_specs, self._model.vocab_size)
        self._install(Installed(model, (), Pooler(None, self._table), Eager(model, (), self._backend)))

    def close(self) -> None:
        """Frees the KV cache."""
        self._kv = ()
        self.runner = Eager(self._model, (), self._backend)

    def _install(self, made: Installed) -> None:
        self._model, self._kv, self._pooler, self.runner = made.model, made.kv, made.pooler, made.runner

    def _made_for(self, model: Model, kv: tuple[KVLayer, ...]) -> Installed:
        """All that can fail for want of memory."""
        return Installed(model, kv, Pooler(model.pooling, self._table), self._make_runner(model, kv))

    def _make_kv(self, model: Model) -> tuple[KVLayer, ...]:
        return allocate_kv(model.kv_specs, self._num_pages, self._table.page_size, self._device)

    def _make_runner(self, model: Model, kv: tuple[KVLayer, ...]) -> Runner:
        if self._graphs is None:
            return Eager(model, kv, self._backend)
        parts = (model, kv, self._backend, self._table, self._device)
        return Graphs(*parts, self._graphs, q_lens=self._q_lens, refill=self._refill)
