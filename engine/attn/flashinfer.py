"""Attention on NVIDIA GPUs through FlashInfer: plans steps and captured graphs on the host, from host integers alone.

What FlashInfer does not compute, the Triton kernels do, which read the same pages: layers with sinks or a quantised
cache, plans for which its workspace is too small, and steps whose lengths only the device knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn import triton
from sgl.engine.attn.backend import GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, HostRows, KVLayer, KVSpec
from sgl.engine.attn.parts import Part, cut, role_of
from sgl.engine.attn.prefixes import Prefix, Tables
from sgl.engine.attn.triton import TritonBackend
from sgl.engine.base.device import Device
from sgl.kernels.flashinfer.attention import (
    DTYPES,
    HEAD_DIMS,
    LATENT_DIMS,
    WORKSPACE_BYTES,
    WRAPPER_BYTES,
    Buffers,
    Kind,
    Role,
    Wrapper,
    compile_merge,
    make_wrapper,
    merge,
)
from sgl.kernels.ops.attention import Rules

WORTH_BYTES = 256 << 20
"""Pages in common are read once where that spares so much reading in a layer. By arithmetic, not by measurement: it
takes 60 us at 4.3 TB/s, and about as much to launch what is launched in place of a captured layer."""


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


@dataclass(frozen=True, slots=True)
class Planned:
    """A part, and what has been planned for it and for its prefix."""

    part: Part
    wrapper: Wrapper
    prefix: Wrapper | None

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of the part's tokens."""
        shared = self.part.prefix
        if self.prefix is None or shared is None:
            return self.wrapper.run(q, k, v)
        out, sums = self.wrapper.run_part(q, k, v)
        count = shared.num_tokens
        merge((out[:count], sums[:count]), self.prefix.run_part(q[:count], k, v))
        return out


@dataclass(frozen=True, slots=True)
class Meta:
    """A step."""

    batch: ForwardBatch
    others: triton.Meta  # what the Triton kernels need
    parts: dict[tuple[int, bool, bool], list[Part]] = field(default_factory=dict)  # by KV group, and how it is cut
    planned: dict[tuple[Kind, int], list[Planned]] = field(default_factory=dict)  # empty: for the Triton kernels


class FlashInferBackend:
    """See `AttentionBackend`. How FlashInfer splits keys depends on the batch, and with it a row's last bits."""

    def __init__(self, device: Device, specs: Sequence[KVSpec]) -> None:
        self.device = device
        self.others = TritonBackend(device)
        wrappers = len(set(specs)) * WRAPPER_BYTES  # layers of one specification are computed alike
        self.traits = Traits(
            plans_on_host=True,
            step_bytes=self.others.traits.step_bytes,
            plan_bytes=len(get_args(Role)) * wrappers,
            graph_bytes=wrappers,
        )
        self.workspace = device.zeros((WORKSPACE_BYTES,), torch.uint8)
        if device.is_async:
            compile_merge(device)
        self._wrappers: dict[tuple[Kind, int, Role], Wrapper] = {}
        self._found: tuple[HostRows | None, dict[tuple[int, int], list[Prefix]]] = (None, {})
        self._indices: dict[int, Tensor] = {}

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(batch, self.others.plan(batch))

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        self.others.store(k, v, kv, meta.others)

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        planned: list[Planned] = []
        if rules.sinks is None and kv.k_scale is None:
            planned = self._planned(kind_of(q, kv, rules), kv.group, meta)
        if not planned:
            return self.others.run(q, kv, meta.others, rules)
        if planned[0].part.tokens is None:
            return planned[0].run(q, kv.k, kv.v)
        out = torch.empty(*q.shape[:2], kv.v.shape[3], dtype=q.dtype, device=q.device)
        for each in planned:
            tokens = each.part.tokens
            assert tokens is not None
            out.index_copy_(0, tokens, each.run(q.index_select(0, tokens), kv.k, kv.v))
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        return FlashInferGraph(self, batch)

    def prefixes(self, batch: ForwardBatch, kind: Kind, group: int) -> list[Prefix]:
        """What rows of one token have in common, if it is worth to read it once."""
        host = batch.host
        if host is None or kind.window is not None or not kind.fits("prefix"):
            return []
        num_pages = np.where(np.array(batch.q_lens) == 1, (host.seq_lens - 1) // kind.page_size, 0)
        worth = -(-WORTH_BYTES // kind.page_bytes)
        if int(num_pages.sum() - num_pages.max()) < worth:
            return []
        if self._found[0] is not host:
            self._found = (host, {})
        found, key = self._found[1], (group, worth)
        if key not in found:
            found[key] = Tables(host.pages[group], host.slots, num_pages).prefixes(worth)
        return found[key] if sum(prefix.num_spared for prefix in found[key]) >= worth else []

    def indices(self, group: int, count: int) -> Tensor:
        """Where the pages of a captured step stand. All captures have one place: each is planned before it runs."""
        if group not in self._indices or len(self._indices[group]) < count:
            self._indices[group] = torch.zeros(count, dtype=torch.int32, device=self.device.torch_device)
        return self._indices[group][:count]

    def _planned(self, kind: Kind, group: int, meta: Meta) -> list[Planned]:
        key = (kind, group)
        if key not in meta.planned:
            meta.planned[key] = self._plan(kind, group, meta)
        return meta.planned[key]

    def _plan(self, kind: Kind, group: int, meta: Meta) -> list[Planned]:
        if meta.batch.host is None:
            return []
        prefixes = self.prefixes(meta.batch, kind, group)
        by_length = not kind.latent_dim
        key = (group, by_length, bool(prefixes))
        if key not in meta.parts:
            meta.parts[key] = cut(self.device, meta.batch, group, kind.page_size, prefixes, by_length=by_length)
        parts = meta.parts[key]
        if not all(kind.fits(part.role) and kind.has_plan(part.q_lens) for part in parts):
            return []
        return [
            Planned(
                part,
                self._wrapper(kind, group, part),
                None if part.prefix is None else self._wrapper(kind, group, part.prefix),
            )
            for part in parts
        ]

    def _wrapper(self, kind: Kind, group: int, part: Part) -> Wrapper:
        """Planned for a part."""
        key = (kind, group, part.role)
        if key not in self._wrappers:
            self._wrappers[key] = make_wrapper(self.device, self.workspace, kind, part.role)
        self._wrappers[key].plan(part.rows)
        return self._wrappers[key]


class FlashInferGraph:
    """See `GraphBackend`: wrappers whose arrays stay where they are, one for every kind of layer that has run."""

    def __init__(self, backend: FlashInferBackend, batch: ForwardBatch) -> None:
        self.traits = backend.traits
        self._backend = backend
        self._batch = batch
        self._q_lens = self._seq_lens = np.array(batch.q_lens, np.int64)
        self._parts: dict[int, Part] = {}  # of the step, by KV group
        others = backend.others.graph_buffers(batch)
        assert others is not None
        self._others = others
        self._buffers: dict[int, Buffers] = {}  # by KV group
        self._wrappers: dict[tuple[Kind, int], Wrapper] = {}

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(self._batch, self._others.plan(self._batch))

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        self._backend.store(k, v, kv, meta)

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        kind, role = kind_of(q, kv, rules), role_of(self._batch.q_lens[0])
        fits = kind.fits(role, len(self._q_lens), len(q)) and kind.has_plan(self._q_lens)
        if rules.sinks is not None or kv.k_scale is not None or not fits:
            return self._backend.others.run(q, kv, meta.others, rules)
        key = (kind, kv.group)
        if key not in self._wrappers:
            buffers, backend = self._buffers_of(kv.group), self._backend
            self._wrappers[key] = make_wrapper(backend.device, backend.workspace, kind, role, buffers)
            self._plan(key)
        return self._wrappers[key].run(q, kv.k, kv.v)

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        raise AssertionError("a graph has its buffers")

    def replan(self, batch: ForwardBatch) -> bool:
        """Rows that the step does not have are padding: as long as their own queries. A step that had better read
        pages in common once is not for the graph."""
        if not self._wrappers:  # the Triton kernels compute it all
            return True
        if batch.host is None or any(self._backend.prefixes(batch, *key) for key in self._wrappers):
            return False
        self._seq_lens, self._parts = self._q_lens.copy(), {}
        self._seq_lens[: len(batch.q_lens)] = batch.host.seq_lens
        for key in self._wrappers:
            self._plan(key)
        return True

    def _buffers_of(self, group: int) -> Buffers:
        if group not in self._buffers:
            count, device = len(self._q_lens), self._backend.device.torch_device
            sizes = (count + 1, count + 1, count, count)
            qo, kv, last, lens = (torch.zeros(size, dtype=torch.int32, device=device) for size in sizes)
            indices = self._backend.indices(group, self._batch.page_table[group].numel())
            self._buffers[group] = Buffers(qo, kv, last, lens, indices)
        return self._buffers[group]

    def _plan(self, key: tuple[Kind, int]) -> None:
        kind, group = key
        if group not in self._parts:
            self._parts[group] = Part(
                *(self._backend.device, role_of(int(self._q_lens[0])), self._q_lens, self._seq_lens),
                *(self._batch.page_table[group], kind.page_size),
                into=self._buffers_of(group).indices,
            )
        self._wrappers[key].plan(self._parts[group].rows)


def kind_of(q: Tensor, kv: KVLayer, rules: Rules) -> Kind:
    latent_dim, numbers = kv.v.shape[3] if kv.is_latent else 0, (rules.scale, rules.window, rules.softcap)
    return Kind(q.shape[1], kv.k.shape[1], q.shape[2], kv.page_size, q.dtype, *numbers, latent_dim)
