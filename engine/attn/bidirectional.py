"""Attention of encoders: every token of a sequence sees all of it, within the step; reads and writes no cache.

Sequences are packed without padding and attended one by one, so an answer does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sgl.engine.attn.backend import GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.kernels.ops.attention import Rules


class Sequences:
    """A step whose rows are whole sequences, and the keys and values of the layer that is being computed."""

    def __init__(self, batch: ForwardBatch) -> None:
        self.q_lens = batch.q_lens
        self.k = self.v = torch.empty(0)


class BidirectionalBackend:
    """See `AttentionBackend`; of its axes it has the scale only. `store` keeps a layer's keys for the next `run`."""

    traits = Traits()

    def plan(self, batch: ForwardBatch) -> Sequences:
        return Sequences(batch)

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Sequences) -> None:
        meta.k, meta.v = k, v

    def run(self, q: Tensor, kv: KVLayer, meta: Sequences, rules: Rules) -> Tensor:
        assert rules == Rules(rules.scale), "encoders have none of the others"
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        start = 0
        for length in meta.q_lens:
            part = slice(start, start + length)
            one_q, k, v = (x[part].transpose(0, 1)[None] for x in (q, meta.k, meta.v))  # [1, heads, n, D]
            attended = scaled_dot_product_attention(one_q, k, v, scale=rules.scale, enable_gqa=q.shape[1] != k.shape[1])
            out[part] = attended[0].transpose(0, 1)
            start = part.stop
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Sequences] | None:
        return None
