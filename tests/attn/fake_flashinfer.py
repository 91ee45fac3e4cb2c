"""FlashInfer's wrappers of paged attention as its documentation describes them (0.6.13), in plain torch.

Checks what the real ones leave to the caller: types, sizes, and that a captured graph's arrays stay where they are.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
"""Values, and the logarithms (base 2) of the sums of their weights."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, last_page_len: int, causal: bool, options: dict[str, Any]
) -> Part:
    """One request: q ``[n, H, D]`` at the end of the keys in the pages ``indices`` ``[num_pages, Hkv, page, D]``."""
    page_size, group = k.shape[2], q.shape[1] // k.shape[1]
    assert 1 <= last_page_len <= page_size
    num_keys = (len(indices) - 1) * page_size + last_page_len
    k, v = (
        x[indices.long()].transpose(1, 2).flatten(0, 1)[:num_keys].double().repeat_interleave(group, 1) for x in (k, v)
    )
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * options["sm_scale"]
    cap = options["logits_soft_cap"] or 0.0
    if cap > 0:
        scores = cap * (scores / cap).tanh()
    query, key = torch.arange(num_keys - len(q), num_keys)[:, None], torch.arange(num_keys)
    hidden = (key > query) & causal
    if options["window_left"] >= 0:
        hidden |= key < query - options["window_left"]
    scores = scores.masked_fill(hidden, -torch.inf)
    values = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q.dtype)
    return values, (scores.logsumexp(-1).T / math.log(2)).float().contiguous()


def answer(parts: list[Part], width: int, out: Tensor | None, return_lse: bool) -> Any:
    """What `run` returns for all requests: values as wide as ``width``, and logarithms of base 2."""
    values, sums = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    values = values[..., :width].contiguous()
    if out is not None:
        assert out.shape == values.shape and out.dtype == values.dtype and out.is_contiguous()
        values = out.copy_(values)
    return (values, sums) if return_lse else values


class Paged:
    """What both wrappers do."""

    def __init__(self, workspace: Tensor, kv_layout: str, use_cuda_graph: bool, *buffers: Tensor | None) -> None:
        assert workspace.dtype == torch.uint8 and kv_layout == "HND"
        self.is_graph = use_cuda_graph
        self.buffers = list(buffers)
        assert use_cuda_graph == all(buffer is not None for buffer in buffers)

    def set(self, arrays: list[Tensor], shape: tuple[int, ...], options: dict[str, Any], copies: bool = True) -> None:
        assert all(array.dtype == torch.int32 for array in arrays)
        *lengths, indices = arrays
        assert int(lengths[-2][-1]) == len(indices), "indptr ends where the pages end"
        assert len(lengths[-2]) == len(lengths[-1]) + 1
        for number, array in enumerate(arrays):
            buffer = self.buffers[number]
            if not self.is_graph:  # what is on the device already is kept as it is
                self.buffers[number] = array if array is indices else array.clone()
            elif copies:
                assert buffer is not None and len(array) <= len(buffer)
                assert array is indices or len(array) == len(buffer), "a graph's batch has one size"
                buffer[: len(array)].copy_(array, non_blocking=True)
        self.shape, self.options = shape, options

    def check(self, q: Tensor, k: Tensor) -> None:
        heads, kv_heads, head_dim, page_size = self.shape
        assert q.shape[1:] == (heads, head_dim) and k.shape[1:] == (kv_heads, page_size, head_dim)
        assert q.dtype == self.options["q_data_type"] and k.dtype == self.options["kv_data_type"]


class BatchDecodeWithPagedKVCacheWrapper(Paged):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
    ) -> None:
        buffers = (paged_kv_indptr_buffer, paged_kv_last_page_len_buffer, paged_kv_indices_buffer)
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, *buffers)

    def plan(self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, *shape: int, **options: Any) -> None:
        self.set([indptr, last_page_len, indices], shape, options)

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], out: Tensor | None = None, return_lse: bool = False
    ) -> Any:
        self.check(q, paged_kv_cache[0])
        starts, last, indices = self.buffers
        assert len(q) == len(last)
        rows = [
            attend(q[n : n + 1], *paged_kv_cache, indices[starts[n] : starts[n + 1]], int(last[n]), False, self.options)
            for n in range(len(q))
        ]
        return answer(rows, q.shape[2], out, return_lse)


def fast_decode_plan(
    self: BatchDecodeWithPagedKVCacheWrapper,
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    *shape: int,
    **options: Any,
) -> None:
    """Leaves the arrays of a graph to the caller."""
    assert self.is_graph and self.shape == shape, "only after a plan of the usual kind"
    self.set([indptr, last_page_len, indices], shape, options, copies=False)


class BatchPrefillWithPagedKVCacheWrapper(Paged):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert backend in ("auto", "fa2")
        buffers = (qo_indptr_buf, paged_kv_indptr_buf, paged_kv_last_page_len_buf, paged_kv_indices_buf)
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, *buffers)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        *shape: int,
        causal: bool = False,
        max_token_per_sequence: int | None = None,
        **options: Any,
    ) -> None:
        assert max_token_per_sequence == int(qo_indptr.diff().max())
        self.causal = causal
        self.set([qo_indptr, paged_kv_indptr, paged_kv_last_page_len, paged_kv_indices], shape, options)

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], out: Tensor | None = None, return_lse: bool = False
    ) -> Any:
        self.check(q, paged_kv_cache[0])
        queries, starts, last, indices = self.buffers
        assert len(q) == int(queries[-1])
        rows = [
            attend(
                *(q[queries[n] : queries[n + 1]], *paged_kv_cache, indices[starts[n] : starts[n + 1]], int(last[n])),
                *(self.causal, self.options),
            )
            for n in range(len(last))
        ]
        return answer(rows, q.shape[2], out, return_lse)


class BatchMLAPagedAttentionWrapper(Paged):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        use_cuda_graph: bool = False,
        qo_indptr: Tensor | None = None,
        kv_indptr: Tensor | None = None,
        kv_indices: Tensor | None = None,
        kv_len_arr: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(float_workspace_buffer, "HND", use_cuda_graph, qo_indptr, kv_indptr, kv_len_arr, kv_indices)

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_len_arr: Tensor,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        use_profiler: bool = False,
    ) -> None:
        assert q_data_type == kv_data_type
        self.causal = causal
        options = {"sm_scale": sm_scale, "logits_soft_cap": None, "window_left": -1, "dtype": q_data_type}
        self.set(
            [qo_indptr, kv_indptr, kv_len_arr, kv_indices], (num_heads, head_dim_ckv, head_dim_kpe, page_size), options
        )

    def run(
        self,
        q_nope: Tensor,
        q_pe: Tensor,
        ckv_cache: Tensor,
        kpe_cache: Tensor,
        out: Tensor | None = None,
        return_lse: bool = False,
    ) -> Any:
        heads, ckv, kpe, page_size = self.shape
        assert q_nope.shape[1:] == (heads, ckv) and q_pe.shape[1:] == (heads, kpe)
        assert ckv_cache.shape[1:] == (page_size, ckv) and kpe_cache.shape[1:] == (page_size, kpe)
        assert {x.dtype for x in (q_nope, q_pe, ckv_cache, kpe_cache)} == {self.options["dtype"]}
        queries, starts, lens, indices = self.buffers
        q, k = torch.cat((q_nope, q_pe), -1), torch.cat((ckv_cache, kpe_cache), -1)[:, None]
        rows = []
        for n, length in enumerate(lens.tolist()):
            pages = indices[starts[n] : starts[n + 1]]
            last = length - (len(pages) - 1) * page_size
            rows.append(attend(q[queries[n] : queries[n + 1]], k, k, pages, last, self.causal, self.options))
        return answer(rows, ckv, out, return_lse)


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor) -> None:
    assert all(x.is_contiguous() for x in (v, s, v_other, s_other))
    assert v.shape == v_other.shape and s.shape == s_other.shape == v.shape[:2]
    assert s.dtype == s_other.dtype == torch.float32
    threads = v.shape[1] * v.shape[2] // max(8, v.shape[2] // 32)  # of a block, in a dtype of two bytes
    assert threads <= 1024, f"a block of {threads} threads"
    both = torch.stack((s, s_other)).double() * math.log(2)
    weights = both.softmax(0)[..., None]
    v.copy_(weights[0] * v.double() + weights[1] * v_other.double())
    s.copy_(both.logsumexp(0) / math.log(2))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``import flashinfer`` find this."""
    cascade, decode, prefill, mla = (
        ModuleType(f"flashinfer.{name}") for name in ("cascade", "decode", "prefill", "mla")
    )
    cascade.__dict__["merge_state_in_place"] = merge_state_in_place
    decode.__dict__.update(
        BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper, fast_decode_plan=fast_decode_plan
    )
    mla.__dict__["BatchMLAPagedAttentionWrapper"] = BatchMLAPagedAttentionWrapper
    prefill.__dict__["BatchPrefillWithPagedKVCacheWrapper"] = BatchPrefillWithPagedKVCacheWrapper
    for name, module in (
        ("flashinfer", ModuleType("flashinfer")),
        (cascade.__name__, cascade),
        (decode.__name__, decode),
        (prefill.__name__, prefill),
        (mla.__name__, mla),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("sgl.kernels.flashinfer.attention", "sgl.engine.attn.parts", "sgl.engine.attn.flashinfer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
