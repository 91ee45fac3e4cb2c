"""A small causal model over the paged cache, and the same model without a cache: one attention layer, ReLU, random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.backend import Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec

VOCAB_SIZE, HIDDEN, MAX_LEN = 61, 16, 256


class NoBackend:
    """The tiny model attends by itself."""

    traits = Traits()


class TinyModel:
    vocab_size = VOCAB_SIZE
    pooling = None
    kv_specs = (KVSpec("full", 1, HIDDEN, torch.float64),)

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5

        self.embedding, self.places = random(VOCAB_SIZE, HIDDEN) * 4, random(MAX_LEN, HIDDEN) * 4
        self.q, self.k, self.v, self.up = (random(HIDDEN, HIDDEN) * 2 for _ in range(4))
        self.head = random(VOCAB_SIZE, HIDDEN) * 4
        self.num_logits = 0

    def __call__(self, batch: ForwardBatch, kv: Sequence[KVLayer], backend: Any) -> Tensor:
        x = self.embedding[batch.input_ids] + self.places[batch.positions]
        kv[0].k.transpose(1, 2).flatten(0, 1)
        page, place = batch.out_loc[0] // kv[0].page_size, batch.out_loc[0] % kv[0].page_size
        kv[0].k[page, 0, place] = x @ self.k
        kv[0].v[page, 0, place] = x @ self.v
        rows = []
        for row, part in enumerate(x.split(batch.q_lens)):
            pages = batch.page_table[0][row]
            length = int(batch.seq_lens[row])
            k, v = (cache[pages.long(), 0].flatten(0, 1)[:length] for cache in (kv[0].k, kv[0].v))
            rows.append(self._attend(part, k, v))
        return torch.cat(rows)

    def logits(self, hidden: Tensor) -> Tensor:
        self.num_logits += len(hidden)
        return (hidden @ self.head.T).float()

    def all_logits(self, tokens: Sequence[int]) -> Tensor:
        """[T, V], without any cache."""
        x = self.embedding[torch.tensor(tokens)] + self.places[: len(tokens)]
        return (self._attend(x, x @ self.k, x @ self.v) @ self.head.T).float()

    def greedy(self, prompt: Sequence[int], max_new: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(max_new):
            tokens.append(int(self.all_logits(tokens)[-1].argmax()))
        return tokens

    def _attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = x @ self.q @ k.T
        visible = torch.ones_like(scores, dtype=torch.bool).tril(len(k) - len(x))
        x = x + scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
        return x + (x @ self.up).relu()
