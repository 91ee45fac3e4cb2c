"""What a model reads in one step and where its keys and values live; holds tensors, computes nothing with them.

Layout of the cache: a layer's keys (and values) are ``[num_pages, num_kv_heads, page_size, head_dim]``, so the tokens
of one page of one head are contiguous. Position ``p`` of a row lies in page ``page_table[row, p // page_size]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


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
    # int64 [B], for backends that plan on the host; None: none does, or only the device knows (drafts are out)
    host_seq_lens: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class KVSpec:
    """What one layer keeps per token. A window layer attends to its last ``window`` tokens, itself included.

    A layer of kind none attends to the sequence in the step, in both directions, and keeps nothing.
    """

    kind: Literal["full", "window", "none"]
    num_heads: int
    head_dim: int
    dtype: torch.dtype  # of the computation
    window: int | None = None
    # int8, float8_e4m3fn or float8_e5m2, kept with a float32 scale per token and head; None: dtype itself is kept
    quantized: torch.dtype | None = None

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
        return 2 * self.num_heads * (self.head_dim * self.stored.itemsize + scale)


@dataclass(frozen=True, slots=True)
class KVLayer:
    """The pages of one layer. What is in a page that no row owns does not matter."""

    k: Tensor  # [num_pages, Hkv, page_size, D]
    v: Tensor  # [num_pages, Hkv, page_size, D]
    group: int = 0  # index into ForwardBatch.out_loc and page_table
    k_scale: Tensor | None = None  # float32 [num_pages, Hkv, page_size]; None where keys and values are not quantised
    v_scale: Tensor | None = None

    @property
    def page_size(self) -> int:
        return self.k.shape[2]
