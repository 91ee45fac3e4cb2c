"""FlashInfer's paged attention behind one interface for decode, prefill and latents; knows no step and no backend.

Every plan is made from host arrays and starts copies to the device only. FlashInfer keeps what a plan copies in pinned
memory of the wrapper, so the next plan first makes sure that the copy of the one before is done: an event tells, which
in a step loop has long passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from flashinfer.cascade import merge_state_in_place
from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper, fast_decode_plan
from flashinfer.mla import BatchMLAPagedAttentionWrapper
from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper
from torch import Tensor

from sgl.engine.base.device import Device, Event

WORKSPACE_BYTES = 384 << 20
"""Partial results of split keys; one buffer serves all wrappers, since they run one after the other. A plan that needs
more fails: see `Kind.fits`."""

WRAPPER_BYTES = 8 << 20
"""What every wrapper takes on the device for its plan, whatever it plans (prefill 128 KiB more, for lengths)."""

HEAD_DIMS = (64, 128, 256)
LATENT_DIMS = (512, 64)
"""Of a latent and of the key beside it: all that its kernels know."""

DTYPES = (torch.bfloat16, torch.float16)

SHORT_TOKENS = 16
"""Rows of up to so many tokens are computed by the kernels (FA2) that split keys and put the heads of a group into one
tile; longer ones by whichever FlashInfer prefers. On Hopper that is FA3, whose tiles are 128 queries of one head."""

Role = Literal["decode", "short", "long", "prefix"]
"""Rows of one token; of up to `SHORT_TOKENS`; of any number; or queries of any rows, all of which see all keys."""

_LAYOUT = "HND"  # pages are [Hkv, page_size, D]
_TENSOR_CORE_GROUP = 4  # query heads of a KV head from which on tensor cores decode faster, as FlashInfer advises
_PROGRAMS = 2 * 148  # that split keys at most: two on each multiprocessor of the largest GPU
_TILE = 128  # query rows of a program, at most
_LATENT_TILE = 64  # query rows of one for latents, twice as many where rows have more
_MOST_WORKS = 16384  # that a plan of latents has room for, which it does not check


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

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def page_bytes(self) -> int:
        """Of a page of one layer."""
        copies = 1 if self.latent_dim else 2
        return copies * self.num_kv_heads * self.head_dim * self.page_size * self.dtype.itemsize

    def fits(self, role: Role, graph_rows: int = 0, graph_tokens: int = 0) -> bool:
        """Whether the workspace has room for partial results: float32, for every query row of every program.

        A step splits keys only among so many programs as run at once. A graph is planned for as many as its tokens can
        need, however they are divided among its rows.
        """
        if self.latent_dim or (role == "decode" and self.group < _TENSOR_CORE_GROUP):
            return True  # they need little at any size
        programs, longest = _PROGRAMS * self.group, 1 if role == "decode" else _TILE
        if graph_rows:
            longest = graph_tokens - graph_rows + 1
        tile = next((size for size in (16, 64) if longest * self.group <= size), _TILE if self.head_dim < 256 else 64)
        if graph_rows:
            tiles = -(-graph_tokens * self.group // tile) + graph_rows - 1
            programs = max(programs, tiles * self.num_heads)
        return programs * tile * (self.head_dim + 1) * 4 <= WORKSPACE_BYTES

    def has_plan(self, q_lens: np.ndarray) -> bool:
        """Whether a plan has room for rows of so many tokens: for a work of every tile, and of every split behind its
        first, of which there are no more than programs."""
        if not self.latent_dim:
            return True
        counts = q_lens * self.num_heads
        tile = 2 * _LATENT_TILE if counts.mean() >= _LATENT_TILE + 1 else _LATENT_TILE
        return int(-(-counts // tile).sum()) + _PROGRAMS <= _MOST_WORKS


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


class Wrapper:
    """One of FlashInfer's wrappers, which is planned for one step after the other.

    Args:
        inner: FlashInfer's.
        plan: hands it the rows of a step.
        inputs: what it takes of queries, keys and values.
    """

    def __init__(
        self,
        device: Device,
        inner: Any,
        plan: Callable[[Rows], None],
        inputs: Callable[[Tensor, Tensor, Tensor], tuple[Any, ...]],
    ) -> None:
        self._inner, self._plan, self._inputs = inner, plan, inputs
        self._copied: Event = device.event()

    def plan(self, rows: Rows) -> None:
        self._copied.synchronize()
        self._plan(rows)
        self._copied.record()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A new ``[T, H, Dv]``."""
        out = q.new_empty(*q.shape[:2], v.shape[3])  # FlashInfer would fill with zeros what it makes itself
        answer: Tensor = self._inner.run(*self._inputs(q, k, v), out=out)
        return answer

    def run_part(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `run`, and float32 ``[T, H]``, the logarithms (base 2) of the sums of weights."""
        out = q.new_empty(*q.shape[:2], v.shape[3])
        part: tuple[Tensor, Tensor] = self._inner.run(*self._inputs(q, k, v), out=out, return_lse=True)
        return part


def merge(part: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the keys of two `Wrapper.run_part`, in the place of the first."""
    # A block has threads for all heads of a row, and 128 heads are too many: heads are rows here.
    values, sums, *others = (x.view(-1, 1, *x.shape[2:]) for x in (*part, *other))
    merge_state_in_place(values, sums, *others)
    return part[0]


def compile_merge(device: Device) -> None:
    """What `merge` launches, which is compiled when it is called first: in serving, that is long after the start."""
    values, sums = device.zeros((2, 1, HEAD_DIMS[0]), torch.bfloat16), device.zeros((2, 1), torch.float32)
    merge((values[:1], sums[:1]), (values[1:], sums[1:]))


def make_wrapper(device: Device, workspace: Tensor, kind: Kind, role: Role, buffers: Buffers | None = None) -> Wrapper:
    """What computes rows of one role.

    Args:
        workspace: `WORKSPACE_BYTES`, zero before it is used first.
        buffers: for use in a captured graph, whose rows stay as many as theirs.
    """
    if kind.latent_dim:
        return _latents(device, workspace, kind, role, buffers)
    make = _decode if role == "decode" else _prefill
    return make(device, workspace, kind, role, buffers)


def _decode(device: Device, workspace: Tensor, kind: Kind, role: Role, buffers: Buffers | None) -> Wrapper:
    options: dict[str, Any] = {}
    if buffers is not None:
        options = {
            "use_cuda_graph": True,
            "paged_kv_indptr_buffer": buffers.kv_indptr,
            "paged_kv_indices_buffer": buffers.indices,
            "paged_kv_last_page_len_buffer": buffers.last_page_len,
        }
    use_tensor_cores = kind.group >= _TENSOR_CORE_GROUP
    inner = BatchDecodeWithPagedKVCacheWrapper(workspace, _LAYOUT, use_tensor_cores=use_tensor_cores, **options)
    is_planned = False

    def plan(rows: Rows) -> None:
        nonlocal is_planned
        lengths = (rows.kv_indptr, rows.indices, rows.last_page_len)
        if buffers is not None and is_planned:
            # The buffers are in place: what is left is FlashInfer's own plan, without the checks of the first.
            buffers.kv_indptr.copy_(rows.kv_indptr, non_blocking=True)
            buffers.last_page_len.copy_(rows.last_page_len, non_blocking=True)
            fast_decode_plan(inner, *lengths, *kind.shape, **kind.options)
        else:
            inner.plan(*lengths, *kind.shape, **kind.options)
        is_planned = True

    return Wrapper(device, inner, plan, _pages)


def _prefill(device: Device, workspace: Tensor, kind: Kind, role: Role, buffers: Buffers | None) -> Wrapper:
    options: dict[str, Any] = {}
    if buffers is not None:
        options = {
            "use_cuda_graph": True,
            "qo_indptr_buf": buffers.qo_indptr,
            "paged_kv_indptr_buf": buffers.kv_indptr,
            "paged_kv_indices_buf": buffers.indices,
            "paged_kv_last_page_len_buf": buffers.last_page_len,
        }
    backend = "auto" if role == "long" else "fa2"
    inner = BatchPrefillWithPagedKVCacheWrapper(workspace, _LAYOUT, backend=backend, **options)

    def plan(rows: Rows) -> None:
        arrays = (rows.qo_indptr, rows.kv_indptr, rows.indices, rows.last_page_len)
        is_causal, longest = role != "prefix", rows.longest
        inner.plan(*arrays, *kind.shape, causal=is_causal, max_token_per_sequence=longest, **kind.options)

    return Wrapper(device, inner, plan, _pages)


def _latents(device: Device, workspace: Tensor, kind: Kind, role: Role, buffers: Buffers | None) -> Wrapper:
    options: dict[str, Any] = {}
    if buffers is not None:
        options = {
            "use_cuda_graph": True,
            "qo_indptr": buffers.qo_indptr,
            "kv_indptr": buffers.kv_indptr,
            "kv_indices": buffers.indices,
            "kv_len_arr": buffers.kv_lens,
        }
    inner, size = BatchMLAPagedAttentionWrapper(workspace, **options), kind.latent_dim

    def plan(rows: Rows) -> None:
        inner.plan(
            *(rows.qo_indptr, rows.kv_indptr, rows.indices, rows.kv_lens),
            *(kind.num_heads, size, kind.head_dim - size, kind.page_size),
            role != "prefix",  # causal
            *(kind.scale, kind.dtype, kind.dtype),
        )

    def inputs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        return q[..., :size], q[..., size:], v[:, 0], k[:, 0, :, size:]

    return Wrapper(device, inner, plan, inputs)


def _pages(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    return q, (k, v)
