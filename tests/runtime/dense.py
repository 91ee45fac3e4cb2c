"""Attention over the paged cache in the plainest way that asks the device for no number: all is gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.engine.attn.backend import Captured, GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.kernels.ops.attention import Rules


class DenseBackend:
    """See `AttentionBackend`. The oracle of captures: they may not change what it computes."""

    traits = Traits()

    def plan(self, batch: ForwardBatch) -> ForwardBatch:
        return batch

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: ForwardBatch) -> None:
        page, place = meta.out_loc[kv.group] // kv.page_size, meta.out_loc[kv.group] % kv.page_size
        kv.k[page, :, place] = k
        kv.v[page, :, place] = v

    def run(self, q: Tensor, kv: KVLayer, meta: ForwardBatch, rules: Rules) -> Tensor:
        assert rules == Rules(rules.scale)
        row = torch.searchsorted(meta.cu_q, torch.arange(len(q), dtype=torch.int32), right=True) - 1
        pages = meta.page_table[kv.group][row].long()  # [T, P]
        group = q.shape[1] // kv.k.shape[1]
        k, v = (
            part[pages].transpose(1, 2).flatten(2, 3).repeat_interleave(group, 1) for part in (kv.k, kv.v)
        )  # [T, H, S, D]
        scores = (k @ q[..., None]).squeeze(-1) * rules.scale  # [T, H, S]
        visible = torch.arange(k.shape[2]) <= meta.positions[:, None]
        weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        return (weights[:, :, None] @ v).squeeze(2)

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[ForwardBatch]:
        return Captured(self, batch)
