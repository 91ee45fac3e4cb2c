"""Attention on NVIDIA GPUs through the Triton kernels; plans nothing on the host but how queries are cut into tiles.

Rows of a few tokens (decoding, verification) are computed by splits of their keys, longer ones tile by tile. Which way
a row goes, and every number on that way, follows from the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.backend import Captured, GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.base.device import Device
from sgl.kernels.ops.attention import Rules
from sgl.kernels.triton import attention
from sgl.kernels.triton.attention import MAX_HEAD_DIM, Pages, Shape
from sgl.kernels.triton.attention_shared import FIRST_SPLIT, Sharing, find_sharing
from sgl.kernels.triton.attention_store import store_at
from sgl.kernels.triton.shapes import padded

SPLIT_TOKENS = 8
"""Rows of up to so many tokens are computed by splits."""

SPLIT_BYTES = 256 << 20
"""What may be kept at once of the splits of a decode until they are merged: of latents it is megabytes for a token."""

MAX_LATENT_DIM = 512


def why_not(specs: Sequence[KVSpec]) -> str:
    """Why these layers cannot be computed by this backend; empty if they can."""
    if any(spec.dtype not in (torch.bfloat16, torch.float16, torch.float32) for spec in specs):
        return "it computes bfloat16, float16 and float32"
    if any(spec.latent_dim > MAX_LATENT_DIM for spec in specs):
        return f"it needs latents (MLA) of at most {MAX_LATENT_DIM} dimensions"
    if any(spec.head_dim > MAX_HEAD_DIM for spec in specs if not spec.is_latent):
        return f"it needs heads of at most {MAX_HEAD_DIM} dimensions"
    return ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the rows of a step are cut, int32 [N, 3] each as kernels/triton/attention.py describes it; None: no rows."""

    split: Tensor | None
    whole: Tensor | None
    num_split: int  # tokens computed by splits


class Layout:
    """What follows from the rows' numbers of tokens alone; steps of the same rows share it."""

    def __init__(self, q_lens: tuple[int, ...], device: Device) -> None:
        self.q_lens = q_lens
        self._device = device
        self._tiles: dict[tuple[int, int], Tiles] = {}
        split = [count for count in q_lens if 0 < count <= SPLIT_TOKENS]
        self.num_split_rows, self.num_split_tokens = len(split), sum(split)
        self.most_split = padded(max(split, default=1))

    def tiles(self, split_tokens: int, whole_tokens: int) -> Tiles:
        """Tiles of so many tokens at most."""
        key = (split_tokens, whole_tokens)
        if key not in self._tiles:
            self._tiles[key] = self._cut(*key)
        return self._tiles[key]

    @cached_property
    def numbers(self) -> Tensor:
        """int32 [B], of every row's first token among those that are computed by splits."""
        q_lens = np.array(self.q_lens, np.int64)
        counts = np.where(q_lens <= SPLIT_TOKENS, q_lens, 0)
        return self._device.upload([(counts.cumsum() - counts).astype(np.int32)])[0]

    def _cut(self, split_tokens: int, whole_tokens: int) -> Tiles:
        q_lens = np.array(self.q_lens, np.int64)
        is_split = q_lens <= SPLIT_TOKENS
        split = _cut(np.where(is_split, q_lens, 0), split_tokens)
        whole = _cut(np.where(is_split, 0, q_lens), whole_tokens)[::-1].copy()  # the last tokens see most keys
        uploaded = self._device.upload([split, whole])
        kept = [tiles if len(tiles) else None for tiles in uploaded]
        return Tiles(kept[0], kept[1], int(q_lens[is_split].sum()))


def _cut(q_lens: np.ndarray, tokens: int) -> np.ndarray:
    """int32 [N, 3]: row, first token in the row, that token's number among all."""
    counts = -(-q_lens // tokens)
    row = np.repeat(np.arange(len(q_lens)), counts)
    first = (np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)) * tokens
    return np.stack((row, first, (q_lens.cumsum() - q_lens)[row] + first), 1).astype(np.int32)


class Meta:
    """A step. Which rows share pages is found when the first layer asks."""

    def __init__(self, batch: ForwardBatch, layout: Layout) -> None:
        self.batch = batch
        self.layout = layout
        self._sharing: dict[tuple[int, int], Sharing] = {}

    def sharing(self, kv: KVLayer, shape: Shape, window: int | None) -> Sharing | None:
        """Rows that begin with the same pages; None where they would not be computed together.

        That is where it saves reading: two rows fit into the tile that one would have for itself anyway, and a row can
        be longer than a split; and where the splits of all can be kept at once. Finding them costs two small kernels a
        step.
        """
        layout, table = self.layout, self.batch.page_table[kv.group]
        room = shape.split_rows // (shape.group * layout.most_split)
        if (
            window is not None
            or room < 2
            or layout.num_split_rows < 2
            or table.shape[1] * kv.page_size <= FIRST_SPLIT.value
            or layout.num_split_tokens * shape.split_token_bytes > SPLIT_BYTES
        ):
            return None
        key = (kv.group, shape.splits)
        if key not in self._sharing:
            rows = (table, self.batch.cu_q, self.batch.seq_lens)
            limits = (kv.page_size, shape.splits, layout.most_split)
            self._sharing[key] = find_sharing(*rows, *limits, layout.numbers)
        return self._sharing[key]


class TritonBackend:
    """See `AttentionBackend`. A row's answer does not depend on its batch."""

    traits = Traits(step_bytes=SPLIT_BYTES)

    def __init__(self, device: Device) -> None:
        self._device = device
        self._layout = Layout((), device)

    def plan(self, batch: ForwardBatch) -> Meta:
        if batch.q_lens != self._layout.q_lens:
            self._layout = Layout(batch.q_lens, self._device)
        return Meta(batch, self._layout)

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        store_at(k, v, kv.k, kv.v, kv.k_scale, kv.v_scale, meta.batch.out_loc[kv.group])

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        batch, shape = meta.batch, Shape.of(q, kv.k, kv.v)
        tiles = meta.layout.tiles(shape.split_tokens, shape.prefill_tokens)
        table = batch.page_table[kv.group]
        pages = Pages(kv.k, kv.v, kv.k_scale, kv.v_scale, batch.cu_q, batch.seq_lens, table)
        out = torch.empty(*q.shape[:2], shape.value_dim, dtype=q.dtype, device=q.device)
        if tiles.split is not None:
            sharing = meta.sharing(kv, shape, rules.window)
            attention.decode(q, pages, rules, tiles.split, tiles.num_split, sharing, SPLIT_BYTES, out)
        if tiles.whole is not None:
            attention.prefill(q, pages, rules, tiles.whole, out)
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        return TritonGraph(self, Meta(batch, Layout(batch.q_lens, self._device)))


class TritonGraph(Captured[Meta]):
    """See `GraphBackend`: the kernels read lengths and tables from the batch's own tensors, so a replay needs nothing
    more. What rows share is found by kernels of the graph."""

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(self._meta.batch, self._meta.layout)
