"""FlashInfer's paged attention behind one interface for decode, prefill and latents; knows no step and no backend.

Every plan is made from host arrays and starts copies to the device only. FlashInfer keeps what a plan copies in pinned
memory of the wrapper, so the next plan first makes sure that the copy of the one before is done: an event tells, which
in a step loop has long passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper, fast_decode_plan
from flashinfer.mla import BatchMLAPagedAttentionWrapper
from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper
from torch import Tensor

from sgl.engine.base.device import Device, Event

WORKSPACE_BYTES = 256 << 20
"""Partial results of split keys; one buffer serves all wrappers, since they run one after the other."""

HEAD_DIMS = (64, 128, 256)
LATENT_DIMS = (512, 64)
"""Of a latent and of the key beside it: all that its kernels know."""

DTYPES = (torch.bfloat16, torch.float16)

_LAYOUT = "HND"  # pages are [Hkv, page_size, D]
_TENSOR_CORE_GROUP = 4  # query heads of a KV head from which on tensor cores decode faster, as FlashInfer advises


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers that are computed alike share a plan."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    scale: float
    window: int | None
    softcap: float | None
    latent_dim: int = 0  # how many numbers of a key are its value; 0: it has a value of its own

    @property
    def options(self) -> dict[str, Any]:
        """What `plan` takes by name."""
        return {
            "sm_scale": self.scale,
            "window_left": -1 if self.window is None else self.window - 1,
            "logits_soft_cap": self.softcap,
            "q_data_type": self.dtype,
            "kv_data_type": self.dtype,
        }

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.num_heads, self.num_kv_heads, self.head_dim, self.page_size


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a plan: int32 in pinned host memory where not said otherwise."""

    qo_indptr: Tensor  # [B + 1], where each row's queries start
    kv_indptr: Tensor  # [B + 1], where each row's pages start
    last_page_len: Tensor  # [B], 1 to page_size
    kv_lens: Tensor  # [B]
    indices: Tensor  # on the device: the pages of all rows, one after the other
    longest: int  # queries of a row


@dataclass(frozen=True, slots=True)
class Buffers:
    """The device tensors of a captured graph, int32; what a replay reads."""

    qo_indptr: Tensor  # [B + 1]
    kv_indptr: Tensor  # [B + 1]
    last_page_len: Tensor  # [B]
    kv_lens: Tensor  # [B]
    indices: Tensor  # as long as the longest rows' pages


class Wrapper(Protocol):
    def plan(self, rows: Rows) -> None: ...

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Decode:
    """Rows of one query each."""

    def __init__(self, device: Device, workspace: Tensor, kind: Kind, buffers: Buffers | None = None) -> None:
        options = {}
        if buffers is not None:
            options = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": buffers.kv_indptr,
                "paged_kv_indices_buffer": buffers.indices,
                "paged_kv_last_page_len_buffer": buffers.last_page_len,
            }
        use_tensor_cores = kind.num_heads // kind.num_kv_heads >= _TENSOR_CORE_GROUP
        self._wrapper = BatchDecodeWithPagedKVCacheWrapper(
            workspace, _LAYOUT, use_tensor_cores=use_tensor_cores, **options
        )
        self._kind = kind
        self._buffers = buffers
        self._is_planned = False
        self._copied: Event = device.event()

    def plan(self, rows: Rows) -> None:
        self._copied.synchronize()
        lengths = (rows.kv_indptr, rows.indices, rows.last_page_len)
        if self._buffers is not None and self._is_planned:
            # The buffers are in place: what is left is FlashInfer's own plan, without the checks of the first.
            self._buffers.kv_indptr.copy_(rows.kv_indptr, non_blocking=True)
            self._buffers.last_page_len.copy_(rows.last_page_len, non_blocking=True)
            fast_decode_plan(self._wrapper, *lengths, *self._kind.shape, **self._kind.options)
        else:
            self._wrapper.plan(*lengths, *self._kind.shape, **self._kind.options)
        self._is_planned = True
        self._copied.record()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._wrapper.run(q, (k, v))
        return out


class Prefill:
    """Rows of any number of queries, each of which sees its row's keys up to its own."""

    def __init__(self, device: Device, workspace: Tensor, kind: Kind, buffers: Buffers | None = None) -> None:
        options = {}
        if buffers is not None:
            options = {
                "use_cuda_graph": True,
                "qo_indptr_buf": buffers.qo_indptr,
                "paged_kv_indptr_buf": buffers.kv_indptr,
                "paged_kv_indices_buf": buffers.indices,
                "paged_kv_last_page_len_buf": buffers.last_page_len,
            }
        self._wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, _LAYOUT, **options)
        self._kind = kind
        self._copied: Event = device.event()

    def plan(self, rows: Rows) -> None:
        self._copied.synchronize()
        self._wrapper.plan(
            *(rows.qo_indptr, rows.kv_indptr, rows.indices, rows.last_page_len),
            *self._kind.shape,
            causal=True,
            max_token_per_sequence=rows.longest,
            **self._kind.options,
        )
        self._copied.record()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._wrapper.run(q, (k, v))
        return out


class Latents:
    """Rows of any number of queries over latents; values are the beginnings of the keys."""

    def __init__(self, device: Device, workspace: Tensor, kind: Kind, buffers: Buffers | None = None) -> None:
        options = {}
        if buffers is not None:
            options = {
                "use_cuda_graph": True,
                "qo_indptr": buffers.qo_indptr,
                "kv_indptr": buffers.kv_indptr,
                "kv_indices": buffers.indices,
                "kv_len_arr": buffers.kv_lens,
            }
        self._wrapper = BatchMLAPagedAttentionWrapper(workspace, **options)
        self._kind = kind
        self._copied: Event = device.event()

    def plan(self, rows: Rows) -> None:
        kind = self._kind
        self._copied.synchronize()
        self._wrapper.plan(
            *(rows.qo_indptr, rows.kv_indptr, rows.indices, rows.kv_lens),
            *(kind.num_heads, kind.latent_dim, kind.head_dim - kind.latent_dim, kind.page_size),
            True,  # causal
            kind.scale,
            kind.dtype,
            kind.dtype,
        )
        self._copied.record()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size = self._kind.latent_dim
        out: Tensor = self._wrapper.run(q[..., :size], q[..., size:], v[:, 0], k[:, 0, :, size:])
        return out
