"""Attention over latents, from which keys and values of all heads follow; computes in what the cache keeps of them.

A head's key is ``up_k @ latent``, so its score with a query is that of ``up_k.T @ query`` with the latent itself; and a
weighted sum of values ``up_v @ latent`` is ``up_v`` of the weighted sum of latents. So nothing is ever made of a cached
token: queries go to the latents, and what attention answers comes back from them (DeepSeek-AI 2024, section 2.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import KVLayer, KVSpec
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.norm import Norm
from sgl.engine.nn.rope import Rotation, Tables
from sgl.engine.nn.spec import AttentionSpec, LatentSpec, NormSpec
from sgl.engine.nn.weights import Build, StackedWeight, WeightSlot
from sgl.kernels.ops.attention import Rules
from sgl.kernels.ops.linear import LinearFn, dequantized


class Expansion:
    """What makes keys and values of a latent, as two products per head; no format rounds it, a stored one is decoded.

    Attributes:
        in_features, parts, format: as those of `Linear`, for who counts what a step multiplies.
        to_latent: queries ``[T, H, key_dim]`` to ``[T, H, rank]``.
        to_value: sums of latents ``[T, H, rank]`` to ``[T, H, value_dim]``.
    """

    to_latent: LinearFn
    to_value: LinearFn

    def __init__(self, build: Build, name: str, num_heads: int, spec: LatentSpec) -> None:
        self.in_features = spec.rank
        self.parts = (num_heads * spec.key_dim, num_heads * spec.value_dim)
        self.format = str(build.dtype).removeprefix("torch.")
        self.nbytes = 0
        self._build = build
        self._shape = (num_heads, spec.key_dim + spec.value_dim, spec.rank)
        self._key_dim = spec.key_dim
        shape = (sum(self.parts), spec.rank)
        self.slots = [WeightSlot(f"{name}.weight", shape, StackedWeight(shape, build.dtype, build.device))]
        build.leaves.append(self)

    def finalize(self) -> None:
        stored = self.slots[0].destination
        assert isinstance(stored, StackedWeight)
        weight = dequantized(stored.take_weight()).to(self._build.dtype).view(self._shape)
        to_latent, to_value = weight[:, : self._key_dim].transpose(1, 2), weight[:, self._key_dim :]
        prepare, allocate = self._build.kernels["matmul.heads"], self._build.allocate
        self.to_latent, self.to_value = (prepare(part.contiguous(), allocate) for part in (to_latent, to_value))
        self.nbytes = self.to_latent.packed_bytes + self.to_value.packed_bytes or weight.nbytes


class LatentAttention:
    """``out(to_value(attend(to_latent(q), latents)))``; see `LatentSpec`."""

    def __init__(
        self,
        build: Build,
        layer: int,
        spec: AttentionSpec,
        latent: LatentSpec,
        hidden_size: int,
        rotation: Rotation,
    ) -> None:
        names = build.names
        q_size, kv_size = spec.num_heads * (latent.key_dim + latent.rope_dim), latent.rank + latent.rope_dim
        norm = NormSpec("rms", latent.eps)
        self.spec, self.latent = spec, latent
        self._rotation = rotation
        self._q_norm: Norm | None = None
        self._q_up: Linear | None = None
        down_names, first_size = names.qkv, q_size
        if latent.q_rank is not None:
            down_names, first_size = (names.q_down, names.kv_down), latent.q_rank
            self._q_norm = Norm(build, names.q_down_norm.format(layer), norm, latent.q_rank)
            self._q_up = Linear(build, (names.q_up.format(layer),), latent.q_rank, (q_size,), bias=False)
        down_names = tuple(name.format(layer) for name in down_names)
        self._first_size = first_size
        self._down = Linear(build, down_names, hidden_size, (first_size, kv_size), latent.bias)
        self._kv_norm = Norm(build, names.kv_down_norm.format(layer), norm, latent.rank)
        self._expansion = Expansion(build, names.kv_up.format(layer), spec.num_heads, latent)
        out_name = names.attention_out.format(layer)
        self._out = Linear(build, (out_name,), spec.num_heads * latent.value_dim, (hidden_size,), latent.bias)
        self.kv_spec = KVSpec("mla", 1, spec.head_dim, build.dtype, quantized=build.kv_dtype, latent_dim=latent.rank)

    @property
    def products(self) -> dict[str, Linear]:
        """Its linear layers by what they are called in a profile."""
        queries = {} if self._q_up is None else {"q": self._q_up}
        return {"qkv": self._down, **queries, "out": self._out}

    def __call__(self, x: Tensor, tables: Tables, kv: KVLayer, backend: AttentionBackend[Any], meta: Any) -> Tensor:
        """``[T, H] -> [T, H]``, a new tensor; stores this step's latents."""
        spec, latent = self.spec, self.latent
        sizes = [self._first_size, latent.rank, latent.rope_dim]
        first, kept, shared = torch.split(self._down(x), sizes, -1)
        shared = self._rotation.apply(shared[:, None], tables)
        keys = torch.cat((self._kv_norm(kept)[:, None], shared), -1)  # [T, 1, D]
        backend.store(keys, keys[..., : latent.rank], kv, meta)
        q = self._query(first, tables)
        out = backend.run(q, kv, meta, Rules(spec.scale, spec.window, spec.softcap))  # [T, H, rank]
        return self._out(self._expansion.to_value(out).reshape(len(x), -1))

    def _query(self, first: Tensor, tables: Tables) -> Tensor:
        """``[T, H, D]``, as it meets what is kept."""
        latent = self.latent
        if self._q_up is not None and self._q_norm is not None:
            first = self._q_up(self._q_norm(first))
        heads = first.reshape(len(first), self.spec.num_heads, -1)
        own, shared = heads[..., : latent.key_dim], heads[..., latent.key_dim :]
        return torch.cat((self._expansion.to_latent(own), self._rotation.apply(shared, tables)), -1)
