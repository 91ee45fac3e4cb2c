"""Attention on the CPU through the C++ kernels: the paged cache is read in place, in a layout of its own.

A page of a head holds the same numbers as ``[page_size, D]``, arranged as attention.cpp describes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sgl.engine.attn.backend import GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.kernels.cpu import native
from sgl.kernels.ops.attention import Rules

SUB_PAGE = 16  # tokens: the width of the kernels' registers
MAX_HEAD_DIM = 256
MAX_LATENT_KEY = 576  # numbers of a key whose beginning is its value


def why_not(specs: Sequence[KVSpec], page_size: int) -> str:
    """Why these layers cannot be computed by this backend; empty if they can."""
    if page_size % SUB_PAGE:
        return f"it needs a --page-size that is a multiple of {SUB_PAGE}"
    for spec in specs:
        if spec.quantized not in (None, torch.int8):
            return "it quantises keys and values to int8 only"
        if spec.dtype != torch.bfloat16:
            return "it computes bfloat16"
        if spec.head_dim % SUB_PAGE or spec.latent_dim % SUB_PAGE or spec.head_dim > _most(spec):
            kind = "latents (MLA)" if spec.is_latent else "heads"
            return f"it needs {kind} of a multiple of {SUB_PAGE} and at most {_most(spec)} dimensions"
    return native.missing()


def _most(spec: KVSpec) -> int:
    """Numbers of a key."""
    return MAX_LATENT_KEY if spec.is_latent else MAX_HEAD_DIM


class CpuBackend:
    """See `AttentionBackend`. A query's result depends neither on its batch nor on how its prompt was chunked."""

    traits = Traits(native_pages=True)

    def __init__(self) -> None:
        self.library: ctypes.CDLL = native.library()
        native.set_threads(self.library, torch.get_num_threads())

    def plan(self, batch: ForwardBatch) -> ForwardBatch:
        return batch

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: ForwardBatch) -> None:
        self.library.sgl_kv_store(
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            meta.out_loc[kv.group].data_ptr(),
            k.shape[0],
            k.shape[1],
            k.shape[2],
            kv.page_size,
            _latent(kv),
            *_addresses(kv),
        )

    def run(self, q: Tensor, kv: KVLayer, meta: ForwardBatch, rules: Rules) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        table = meta.page_table[kv.group]
        out = torch.empty(num_tokens, num_heads, kv.v.shape[3], dtype=q.dtype)
        self.library.sgl_attention(
            q.data_ptr(),
            q.stride(0),
            *_addresses(kv),
            meta.cu_q.data_ptr(),
            meta.seq_lens.data_ptr(),
            table.data_ptr(),
            table.shape[1],
            len(meta.q_lens),
            num_heads,
            kv.k.shape[1],
            head_dim,
            kv.page_size,
            _latent(kv),
            rules.scale,
            rules.softcap or 0.0,
            None if rules.sinks is None else rules.sinks.data_ptr(),
            rules.window or 0,
            out.data_ptr(),
        )
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[ForwardBatch] | None:
        return None


def _latent(kv: KVLayer) -> int:
    """How many numbers of a key are its value; 0: it has one of its own."""
    return kv.v.shape[3] if kv.is_latent else 0


def _addresses(kv: KVLayer) -> tuple[int | None, ...]:
    """Of keys, values and their scales."""
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in (kv.k, kv.v, kv.k_scale, kv.v_scale))
