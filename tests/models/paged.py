"""Runs a model over a paged cache, independently of the runtime: own pages, own batches, memory poisoned with NaN."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.attn.choice import choose_backend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.nn.decoder import Model
from sgl.kernels.registry import Kernels, bind


@dataclass
class Row:
    """A sequence in the cache: its known tokens, how many of them are computed, and the pages that hold those."""

    tokens: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)


class Paged:
    """A model and a cache whose pages are handed out in random order.

    The torch backend is the default, so that what is tested does not depend on the machine; ``auto`` takes the fastest.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        *,
        page_size: int = 4,
        overrides: Sequence[str] = (),
        kernels: Kernels | None = None,
        backend: str = "torch_native",
        loading: Mapping[str, Any] = MappingProxyType({}),
        **config: Any,
    ) -> None:
        kernels = kernels or bind("cpu", detect_isa(), dtype, overrides)
        fields = read_config(path, config)
        self.model: Model = load_model(path, fields, dtype=dtype, device=open_device("cpu"), kernels=kernels, **loading)
        self.page_size = page_size
        num_pages = 1024 // page_size
        self.free = random.Random(0).sample(range(num_pages), num_pages)
        self._backend = choose_backend(backend, open_device("cpu"), self.model.kv_specs, page_size, kernels)
        self.kv = [KVLayer.make(spec, num_pages, page_size, _poison) for spec in self.model.kv_specs]

    def step(self, rows: Sequence[Row], q_lens: Sequence[int]) -> list[Tensor]:
        """Computes the next tokens of every row; float32 logits ``[q_len, V]`` of each."""
        logits = self.model.logits(self.model(self._batch(rows, q_lens), self.kv, self._backend))
        for row, q_len in zip(rows, q_lens, strict=True):
            row.computed += q_len
        return list(logits.split(list(q_lens)))

    def prompt(self, tokens: Sequence[int], chunk: int = 10_000) -> Tensor:
        """Logits ``[len(tokens), V]`` of a sequence computed in chunks."""
        row = Row(list(tokens))
        parts = [self.step([row], [min(chunk, len(tokens) - start)])[0] for start in range(0, len(tokens), chunk)]
        self.release(row)
        return torch.cat(parts)

    def greedy(self, prompts: Sequence[Sequence[int]], num_new: int, chunk: int = 10_000) -> list[list[int]]:
        """The continuation of every prompt; all run together, each prompt in chunks beside the others' decoding."""
        rows = [Row(list(prompt)) for prompt in prompts]
        ends = [len(prompt) + num_new for prompt in prompts]
        while live := [row for row, end in zip(rows, ends, strict=True) if len(row.tokens) < end]:
            q_lens = [min(chunk, len(row.tokens) - row.computed) for row in live]
            for row, logits in zip(live, self.step(live, q_lens), strict=True):
                if row.computed == len(row.tokens):
                    row.tokens.append(int(logits[-1].argmax()))
        for row in rows:
            self.release(row)
        return [row.tokens[-num_new:] for row in rows]

    def release(self, row: Row) -> None:
        self.free += row.pages
        row.pages = []

    def _batch(self, rows: Sequence[Row], q_lens: Sequence[int]) -> ForwardBatch:
        size = self.page_size
        places = []
        for row, q_len in zip(rows, q_lens, strict=True):
            while len(row.pages) * size < row.computed + q_len:
                row.pages.append(self.free.pop(0))
            places += [(row, row.computed + i) for i in range(q_len)]
        width = max(len(row.pages) for row in rows)
        table = [row.pages + [-1] * (width - len(row.pages)) for row in rows]
        return ForwardBatch(
            input_ids=torch.tensor([row.tokens[p] for row, p in places]),
            positions=torch.tensor([p for _, p in places]),
            cu_q=torch.tensor([0, *accumulate(q_lens)], dtype=torch.int32),
            seq_lens=torch.tensor([row.computed + n for row, n in zip(rows, q_lens, strict=True)], dtype=torch.int32),
            slots=torch.arange(len(rows)),
            out_loc=(torch.tensor([row.pages[p // size] * size + p % size for row, p in places]),),
            page_table=(torch.tensor(table, dtype=torch.int32),),
            logit_indices=torch.arange(len(places)),
            q_lens=tuple(q_lens),
        )


def _poison(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """NaN; where the numbers are bytes, whose scales hold it, any."""
    if dtype.itemsize == 1:
        return torch.full(shape, 0x55, dtype=torch.int8).view(dtype)
    return torch.full(shape, torch.nan, dtype=dtype)
