"""Attention on NVIDIA GPUs through FlashInfer: plans steps and captured graphs on the host, from host integers alone.

What FlashInfer does not compute, the Triton kernels do, which read the same pages: layers with sinks or a quantised
cache, and steps whose lengths only the device knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn import triton
from sgl.engine.attn.backend import GraphBackend
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.attn.triton import TritonBackend
from sgl.engine.base.device import Device
from sgl.kernels.flashinfer.attention import (
    DTYPES,
    HEAD_DIMS,
    LATENT_DIMS,
    WORKSPACE_BYTES,
    Buffers,
    Decode,
    Kind,
    Latents,
    Prefill,
    Rows,
    Wrapper,
)


def why_not(specs: Sequence[KVSpec]) -> str:
    """Why these layers cannot be computed by this backend; empty if they can."""
    if any(spec.dtype not in DTYPES for spec in specs):
        return "it computes bfloat16 and float16"
    if any(spec.quantized for spec in specs):
        return "it keeps keys and values as they are (--kv-cache-dtype auto)"
    if any(spec.head_dim not in HEAD_DIMS for spec in specs if not spec.is_latent):
        return f"it needs heads of {', '.join(map(str, HEAD_DIMS))} dimensions"
    if any((spec.latent_dim, spec.head_dim - spec.latent_dim) != LATENT_DIMS for spec in specs if spec.is_latent):
        return f"it needs latents (MLA) of {LATENT_DIMS[0]} dimensions and keys of {LATENT_DIMS[1]} beside them"
    return triton.why_not(specs)


class Part:
    """Some rows of a step, which one wrapper computes: those of one token, or all others.

    Args:
        tokens: int64, which of the step's T are theirs; None: all.
        row_ids: int64, which rows of the page table are theirs; None: all.
    """

    def __init__(
        self,
        device: Device,
        q_lens: np.ndarray,
        seq_lens: np.ndarray,
        tables: Sequence[Tensor],
        tokens: Tensor | None = None,
        row_ids: Tensor | None = None,
    ) -> None:
        self.tokens = tokens
        self.is_decode = bool((q_lens == 1).all())
        self._device = device
        self._q_lens, self._seq_lens = q_lens, seq_lens
        self._tables = tables
        self._row_ids = row_ids
        self._rows: dict[tuple[int, int], Rows] = {}

    def rows(self, group: int, page_size: int, into: Tensor | None = None) -> Rows:
        """What a wrapper plans from; the pages go to ``into``, if given."""
        key = (group, page_size)
        if key not in self._rows:
            table = self._tables[group]
            table = table if self._row_ids is None else table.index_select(0, self._row_ids)
            self._rows[key] = _rows(self._device, self._q_lens, self._seq_lens, page_size, table, into)
        return self._rows[key]


@dataclass(frozen=True, slots=True)
class Meta:
    """A step. ``parts`` is empty where the host does not know the lengths."""

    batch: ForwardBatch
    parts: tuple[Part, ...]
    others: triton.Meta  # what the Triton kernels need
    wrappers: dict[tuple[Kind, int], tuple[Wrapper, ...]] = field(default_factory=dict)  # planned, by part


class FlashInferBackend:
    """See `AttentionBackend`. How FlashInfer splits keys depends on the batch, and with it a row's last bits."""

    native_pages = False
    plans_on_host = True

    def __init__(self, device: Device) -> None:
        self.device = device
        self.others = TritonBackend(device)
        self.workspace = device.zeros((WORKSPACE_BYTES,), torch.uint8)
        self._wrappers: dict[tuple[Kind, int, bool], Wrapper] = {}

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(batch, self._parts(batch), self.others.plan(batch))

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        self.others.store(k, v, kv, meta.others)

    def run(
        self,
        q: Tensor,
        kv: KVLayer,
        meta: Meta,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if not meta.parts or sinks is not None or kv.k_scale is not None:
            return self.others.run(q, kv, meta.others, scale, window, softcap, sinks)
        wrappers = self._planned(kind_of(q, kv, scale, window, softcap), kv.group, meta)
        if meta.parts[0].tokens is None:
            return wrappers[0].run(q, kv.k, kv.v)
        out = torch.empty(*q.shape[:2], kv.v.shape[3], dtype=q.dtype, device=q.device)
        for part, wrapper in zip(meta.parts, wrappers, strict=True):
            assert part.tokens is not None
            out.index_copy_(0, part.tokens, wrapper.run(q.index_select(0, part.tokens), kv.k, kv.v))
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        return FlashInferGraph(self, batch)

    def _parts(self, batch: ForwardBatch) -> tuple[Part, ...]:
        """All rows of one token and all others apart: FlashInfer has a kernel for each."""
        if batch.host_seq_lens is None:
            return ()
        q_lens, seq_lens = np.array(batch.q_lens, np.int64), batch.host_seq_lens
        is_decode = q_lens == 1
        if is_decode.all() or (q_lens > 1).all():
            return (Part(self.device, q_lens, seq_lens, batch.page_table),)
        row_ids = [np.flatnonzero(chosen) for chosen in (is_decode, q_lens > 1) if chosen.any()]
        row_of = np.repeat(np.arange(len(q_lens)), q_lens)
        tokens = [np.flatnonzero(np.isin(row_of, ids)) for ids in row_ids]
        uploaded = self.device.upload([*row_ids, *tokens])
        return tuple(
            Part(self.device, q_lens[ids], seq_lens[ids], batch.page_table, uploaded[n + len(row_ids)], uploaded[n])
            for n, ids in enumerate(row_ids)
        )

    def _planned(self, kind: Kind, group: int, meta: Meta) -> tuple[Wrapper, ...]:
        key = (kind, group)
        if key not in meta.wrappers:
            wrappers = tuple(self._wrapper(kind, group, part.is_decode) for part in meta.parts)
            for part, wrapper in zip(meta.parts, wrappers, strict=True):
                wrapper.plan(part.rows(group, kind.page_size))
            meta.wrappers[key] = wrappers
        return meta.wrappers[key]

    def _wrapper(self, kind: Kind, group: int, is_decode: bool) -> Wrapper:
        key = (kind, group, is_decode)
        if key not in self._wrappers:
            self._wrappers[key] = _maker(kind, is_decode)(self.device, self.workspace, kind)
        return self._wrappers[key]


class FlashInferGraph:
    """See `GraphBackend`: wrappers whose arrays stay where they are, a set for every kind of layer that has run."""

    native_pages = False
    plans_on_host = True

    def __init__(self, backend: FlashInferBackend, batch: ForwardBatch) -> None:
        self._backend = backend
        self._batch = batch
        self._q_lens = np.array(batch.q_lens, np.int64)
        self._part = self._make_part(self._q_lens)
        others = backend.others.graph_buffers(batch)
        assert others is not None
        self._others = others
        self._buffers: dict[int, Buffers] = {}  # by KV group
        self._wrappers: dict[tuple[Kind, int], Wrapper] = {}

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(self._batch, (self._part,), self._others.plan(self._batch))

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        self._backend.store(k, v, kv, meta)

    def run(
        self,
        q: Tensor,
        kv: KVLayer,
        meta: Meta,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if sinks is not None or kv.k_scale is not None:
            return self._backend.others.run(q, kv, meta.others, scale, window, softcap, sinks)
        key = (kind_of(q, kv, scale, window, softcap), kv.group)
        if key not in self._wrappers:
            self._wrappers[key] = self._make_wrapper(*key)
            self._plan(key)
        return self._wrappers[key].run(q, kv.k, kv.v)

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        raise AssertionError("a graph has its buffers")

    def replan(self, batch: ForwardBatch) -> bool:
        """Rows that the step does not have are padding: as long as their own queries."""
        if batch.host_seq_lens is None:
            return False
        seq_lens = self._q_lens.copy()
        seq_lens[: len(batch.q_lens)] = batch.host_seq_lens
        self._part = self._make_part(seq_lens)
        for key in self._wrappers:
            self._plan(key)
        return True

    def _make_part(self, seq_lens: np.ndarray) -> Part:
        return Part(self._backend.device, self._q_lens, seq_lens, self._batch.page_table)

    def _make_wrapper(self, kind: Kind, group: int) -> Wrapper:
        num_rows, device = len(self._q_lens), self._backend.device.torch_device
        if group not in self._buffers:
            sizes = (num_rows + 1, num_rows + 1, num_rows, num_rows, self._batch.page_table[group].numel() + 1)
            self._buffers[group] = Buffers(*(torch.zeros(size, dtype=torch.int32, device=device) for size in sizes))
        make = _maker(kind, self._part.is_decode)
        return make(self._backend.device, self._backend.workspace, kind, self._buffers[group])

    def _plan(self, key: tuple[Kind, int]) -> None:
        kind, group = key
        self._wrappers[key].plan(self._part.rows(group, kind.page_size, self._buffers[group].indices))


def kind_of(q: Tensor, kv: KVLayer, scale: float, window: int | None, softcap: float | None) -> Kind:
    latent_dim = kv.v.shape[3] if kv.is_latent else 0
    return Kind(q.shape[1], kv.k.shape[1], q.shape[2], kv.page_size, q.dtype, scale, window, softcap, latent_dim)


def _maker(kind: Kind, is_decode: bool) -> type[Latents | Decode | Prefill]:
    return Latents if kind.latent_dim else Decode if is_decode else Prefill


def _rows(
    device: Device, q_lens: np.ndarray, seq_lens: np.ndarray, page_size: int, table: Tensor, into: Tensor | None
) -> Rows:
    counts = -(-seq_lens // page_size)
    qo_indptr, kv_indptr = _starts(q_lens), _starts(counts)
    parts = (qo_indptr, kv_indptr, seq_lens - (counts - 1) * page_size, seq_lens)
    host = device.host_buffer(4 * sum(map(len, parts))).view(torch.int32)
    host.copy_(torch.from_numpy(np.concatenate(parts)))
    total, width = int(kv_indptr[-1]), int(counts.max())
    into = torch.empty(total + 1, dtype=torch.int32, device=table.device) if into is None else into
    _flatten(table[:, :width], device.upload([kv_indptr])[0], into)
    qo, kv, last, lens = torch.split(host, [len(part) for part in parts])
    return Rows(qo, kv, last, lens, into[:total], int(q_lens.max()))


def _flatten(table: Tensor, starts: Tensor, into: Tensor) -> None:
    """Writes the pages of all rows of a table one after the other, row r from ``starts[r]`` on.

    What a table holds beyond a row's pages goes to the last place of ``into``, which nobody reads.
    """
    column = torch.arange(table.shape[1], device=table.device)
    place = starts[:-1, None] + column
    place = torch.where(place < starts[1:, None], place, len(into) - 1)
    into.scatter_(0, place.flatten(), table.flatten())


def _starts(lengths: np.ndarray) -> np.ndarray:
    """int64: where each of consecutive ranges starts, and the end of the last."""
    return np.concatenate(([0], lengths.cumsum()))
