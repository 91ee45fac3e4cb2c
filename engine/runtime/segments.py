"""A forward pass captured in segments, from one attention to the next: for steps whose rows are not alike.

What a layer computes between attentions depends on the number of tokens alone. Attention, which depends on where the
rows begin and on what they have cached, runs in between as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.base.device import Device, Recorder
from sgl.kernels.ops.attention import Rules


class Forward(Protocol):
    """A model's hidden states of a batch; see `sgl.engine.runtime.executor.Model`."""

    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor: ...


@dataclass(frozen=True)
class _Attention:
    """The end of a segment and the attention that follows it; tensors are as long as the capture."""

    replay: Callable[[], None]
    q: Tensor
    k: Tensor
    v: Tensor
    kv: KVLayer
    rules: Rules
    out: Tensor

    def run(self, backend: AttentionBackend[Any], meta: Any, count: int) -> None:
        self.replay()
        backend.store(self.k[:count], self.v[:count], self.kv, meta)
        self.out[:count].copy_(backend.run(self.q[:count], self.kv, meta, self.rules))


class _Cutter:
    """Takes the place of a backend while a model is captured: ends a segment where attention would run."""

    traits = Traits()

    def __init__(self, recorder: Recorder, device: Device, outs: Outs) -> None:
        self._recorder = recorder
        self._device = device
        self._outs = outs
        self._stored: tuple[Tensor, Tensor] | None = None
        self.attentions: list[_Attention] = []

    def plan(self, batch: ForwardBatch) -> None:
        return None

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: None) -> None:
        self._stored = k, v

    def run(self, q: Tensor, kv: KVLayer, meta: None, rules: Rules) -> Tensor:
        assert self._stored is not None, "a layer stores before it attends"
        # borrowed: later segments may take the memory again, since attention has read it by then
        replay = self._recorder.end()
        k, v, borrowed_q = (self._device.borrow(tensor) for tensor in (*self._stored, q))
        out, self._stored = self._outs.like(q, kv.v.shape[3]), None  # allocated outside any capture
        self.attentions.append(_Attention(replay, borrowed_q, k, v, kv, rules, out))
        self._recorder.begin()
        return out

    def graph_buffers(self, batch: ForwardBatch) -> NoReturn:
        raise AssertionError("attention is not part of a segment")


class Outs:
    """Where attention leaves its results: one tensor for all layers and captures, since each is read at once."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tensors: dict[tuple[Any, ...], Tensor] = {}

    def like(self, q: Tensor, value_dim: int) -> Tensor:
        key = (q.dtype, q.shape[1], value_dim)
        if key not in self._tensors:
            # zeros: what no step has written is computed with, though nobody reads what becomes of it
            self._tensors[key] = q.new_zeros(self._max_tokens, q.shape[1], value_dim)
        return self._tensors[key][: len(q)]


class Segments:
    """The captured segments of a step of as many tokens as ``batch`` has, or fewer.

    Args:
        batch: of rows that belong to no request; its tokens and positions are where later steps put theirs.
        outs: shared by all captures of a model.
    """

    def __init__(
        self,
        model: Forward,
        kv: Sequence[KVLayer],
        backend: AttentionBackend[Any],
        device: Device,
        batch: ForwardBatch,
        outs: Outs,
    ) -> None:
        self._backend = backend
        self._input_ids, self._positions = batch.input_ids, batch.positions
        with device.recorder() as recorder:
            model(batch, kv, backend)  # compiles and allocates what a capture must not
            cutter = _Cutter(recorder, device, outs)
            recorder.begin()
            self._hidden = model(batch, kv, cutter)
            self._finish = recorder.end()
        self._attentions = cutter.attentions

    def run(self, batch: ForwardBatch) -> Tensor:
        """The hidden states of a step, valid until the next one."""
        count = len(batch.input_ids)
        self._input_ids[:count].copy_(batch.input_ids)
        self._positions[:count].copy_(batch.positions)
        meta = self._backend.plan(batch)
        for attention in self._attentions:
            attention.run(self._backend, meta, count)
        self._finish()
        return self._hidden[:count]
