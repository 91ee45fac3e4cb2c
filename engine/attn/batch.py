"""What a model reads in one step and where its keys and values live; holds tensors, computes nothing with them.

Layout of the cache: a layer's keys (and values) are ``[num_pages, num_kv_heads, page_size, head_dim]``, so the tokens
of one page of one head are contiguous. Position ``p`` of a row lies in page ``page_table[row, p // page_size]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of a shape and dtype."""


@dataclass(frozen=True, slots=True)
class HostRows:
    """What the host knows of a step's rows, for backends that plan there; read before the next plan is applied."""

    seq_lens: np.ndarray  # int64 [B], as `ForwardBatch.seq_lens`
    slots: np.ndarray  # int64 [B]
    pages: tuple[np.ndarray, ...]  # per KV group: int32 [num_slots, max_pages], the page tables of all slots


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step: ``T`` tokens of ``B`` rows, row after row; all tensors are on the model's device.

    A row may hold one token (decode), several (a chunk of a prompt) or drafts to verify; nothing here tells them apart.
    """

    input_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    cu_q: Tensor  # int32 [B + 1], where each row starts in T
    seq_lens: Tensor  # int32 [B], tokens in the cache of each row after this step
    slots: Tensor  # int64 [B]
    out_loc: tuple[Tensor, ...]  # per KV group: int64 [T], page * page_size + offset
    page_table: tuple[Tensor, ...]  # per KV group: int32 [B, max_pages]; entries beyond a row's pages are not read
    logit_indices: Tensor  # int64 [L], which of the T positions need logits
    q_lens: tuple[int, ...]  # tokens of each row in this step, known to the host from the plan
    token_types: Tensor | None = None  # int64 [T], the segment that each token is in; None: all in the first
    embeds: tuple[Tensor, Tensor] | None = None  # int64 [N] of the T positions, and the [N, H] that they embed to
    host: HostRows | None = None  # None: no backend plans there, or only the device knows (drafts are out)


@dataclass(frozen=True, slots=True)
class KVSpec:
    """What one layer keeps per token. A window layer attends to its last ``window`` tokens, itself included.

    A layer of kind none attends to the sequence in the step, in both directions, and keeps nothing. One of kind mla
    keeps keys only: the first ``latent_dim`` numbers of each are its value.
    """

    kind: Literal["full", "window", "mla", "none"]
    num_heads: int
    head_dim: int
    dtype: torch.dtype  # of the computation
    window: int | None = None
    # int8, float8_e4m3fn or float8_e5m2, kept with a float32 scale per token and head; None: dtype itself is kept
    quantized: torch.dtype | None = None
    latent_dim: int = 0  # of kind mla: how many numbers of a key are its value

    @property
    def is_latent(self) -> bool:
        return self.kind == "mla"

    @property
    def stored(self) -> torch.dtype:
        """The dtype in the pages."""
        return self.quantized or self.dtype

    @property
    def is_kept(self) -> bool:
        return self.kind != "none"

    @property
    def bytes_per_token(self) -> int:
        if not self.is_kept:
            return 0
        scale = 0 if self.quantized is None else torch.float32.itemsize
        copies = 1 if self.is_latent else 2
        return copies * self.num_heads * (self.head_dim * self.stored.itemsize + scale)


@dataclass(frozen=True, slots=True)
class KVLayer:
    """The pages of one layer. What is in a page that no row owns does not matter."""

    k: Tensor  # [num_pages, Hkv, page_size, D]
    v: Tensor  # [num_pages, Hkv, page_size, D], or of kind mla a view of the first numbers of k
    group: int = 0  # index into ForwardBatch.out_loc and page_table
    k_scale: Tensor | None = None  # float32 [num_pages, Hkv, page_size]; None where keys and values are not quantised
    v_scale: Tensor | None = None

    @classmethod
    def make(cls, spec: KVSpec, num_pages: int, page_size: int, allocate: Allocate) -> KVLayer:
        """So many pages for a layer."""
        shape = (num_pages if spec.is_kept else 0, spec.num_heads, page_size, spec.head_dim)
        count = 1 if spec.is_latent else 2
        pages = [allocate(shape, spec.stored) for _ in range(count)]
        scales = [] if spec.quantized is None else [allocate(shape[:3], torch.float32) for _ in range(count)]
        if spec.is_latent:
            pages.append(pages[0][..., : spec.latent_dim])
            scales *= 2
        return cls(pages[0], pages[1], 0, *scales)

    @property
    def is_latent(self) -> bool:
        """Whether values are the beginnings of the keys."""
        return self.v.shape[3] < self.k.shape[3]

    @property
    def parts(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """What is kept, with its scales: keys and values, or keys alone."""
        keys = (self.k, self.k_scale)
        return (keys,) if self.is_latent else (keys, (self.v, self.v_scale))

    @property
    def page_size(self) -> int:
        return self.k.shape[2]
