"""All layers of a common decoder in one native call (decoder.cpp), so that a step costs its kernels and no more."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.cpu.linear import NativeLinear, WeightStruct

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm")
_LINEARS = ("qkv", "out", "gate_up", "down")


class _LayerWeights(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in _NORMS),
        *((name, WeightStruct) for name in _LINEARS),
        ("k_cache", _POINTER),
        ("v_cache", _POINTER),
        ("k_scale", _POINTER),
        ("v_scale", _POINTER),
        ("sinks", _POINTER),
        ("window", _LONG),
    )


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("hidden", "heads", "kv_heads", "dim", "inner", "page_size")),
        *((name, _FLOAT) for name in ("eps", "scale", "softcap", "rope_scale")),
        ("frequencies", _POINTER),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("tokens", "rows", "max_pages")),
        *((name, _POINTER) for name in ("positions", "loc", "cu_q", "seq_lens", "page_table")),
    )


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """The weights of one pre-norm layer with grouped-query attention and a SiLU-gated feed-forward, all bf16."""

    attention_norm: Tensor  # [hidden]
    mlp_norm: Tensor  # [hidden]
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    qkv: NativeLinear
    out: NativeLinear
    gate_up: NativeLinear
    down: NativeLinear
    window: int | None
    sinks: Tensor | None  # float32 [H]


class FusedDecoder:
    """Runs layers of one shape.

    Args:
        num_heads, num_kv_heads, head_dim: of every layer.
        frequencies: float32 ``[D/2]``, the rotation per position of each pair of dimensions.
        rope_scale: factor on its cosines and sines.
        scale: factor on the attention scores.
        softcap: their bound, None for none.
        eps: of all norms.
    """

    def __init__(
        self,
        layers: Sequence[FusedLayer],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        frequencies: Tensor,
        rope_scale: float,
        scale: float,
        softcap: float | None,
        eps: float,
    ) -> None:
        first = layers[0]
        self._keep = (layers, frequencies)  # the structures hold bare addresses
        self._library = first.qkv.library
        self._layers = (_LayerWeights * len(layers))(*(_weights(layer) for layer in layers))
        self._shape = _Shape(
            hidden=first.out.out_features,
            heads=num_heads,
            kv_heads=num_kv_heads,
            dim=head_dim,
            inner=first.down.in_features,
            eps=eps,
            scale=scale,
            softcap=softcap or 0.0,
            rope_scale=rope_scale,
            frequencies=frequencies.data_ptr(),
        )
        products = [linear for layer in layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self._quantised_bytes = max(linear.scratch_bytes for linear in products)
        self._width = first.out.out_features + first.qkv.out_features + num_heads * head_dim + first.down.in_features

    def attach(self, caches: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]) -> None:
        """Says where keys and values are kept from now on.

        Args:
            caches: k and v of every layer, ``[num_pages, Hkv, page_size, D]`` in the layout of attention.cpp, and their
                scales, float32 ``[num_pages, Hkv, page_size]``, if they are int8.
        """
        for layer, (k, v, k_scale, v_scale) in zip(self._layers, caches, strict=True):
            layer.k_cache, layer.v_cache = k.data_ptr(), v.data_ptr()
            layer.k_scale, layer.v_scale = _address(k_scale), _address(v_scale)
        self._shape.page_size = caches[0][0].shape[2]

    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        cu_q: Tensor,
        seq_lens: Tensor,
        out_loc: Tensor,
        page_table: Tensor,
    ) -> Tensor:
        """Replaces hidden ``[T, hidden]`` by the output of the last layer and stores the step's keys and values.

        Args:
            positions, out_loc: int64 ``[T]``.
            cu_q: int32 ``[B + 1]``; seq_lens: int32 ``[B]``; page_table: int32 ``[B, max_pages]``.
        """
        tokens = hidden.shape[0]
        step = _Step(
            tokens=tokens,
            rows=seq_lens.shape[0],
            max_pages=page_table.shape[1],
            positions=positions.data_ptr(),
            loc=out_loc.data_ptr(),
            cu_q=cu_q.data_ptr(),
            seq_lens=seq_lens.data_ptr(),
            page_table=page_table.data_ptr(),
        )
        scratch = torch.empty(tokens * self._width, dtype=torch.bfloat16)
        angles = torch.empty(tokens * self._shape.dim)
        quantised = torch.empty(tokens * self._quantised_bytes, dtype=torch.uint8)
        self._library.sgl_decoder(
            ctypes.byref(self._layers),
            len(self._layers),
            ctypes.byref(self._shape),
            ctypes.byref(step),
            hidden.data_ptr(),
            scratch.data_ptr(),
            angles.data_ptr(),
            quantised.data_ptr(),
        )
        return hidden


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _weights(layer: FusedLayer) -> _LayerWeights:
    linears = {name: getattr(layer, name) for name in _LINEARS}
    norms = {name: getattr(layer, name) for name in _NORMS}
    return _LayerWeights(
        window=layer.window or 0,
        sinks=_address(layer.sinks),
        **{name: _address(norm) for name, norm in norms.items()},
        **{name: linear.struct for name, linear in linears.items()},
    )
