"""Grouped-query attention of a layer, around whatever backend owns the paged cache."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import KVLayer, KVSpec
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.norm import NoQKNorm, QKNorm, RmsQKNorm
from sgl.engine.nn.rope import Rotation, Tables
from sgl.engine.nn.spec import AttentionSpec
from sgl.engine.nn.weights import Build, Parameter, WeightSlot
from sgl.kernels.ops.attention import Rules


class Sinks(Protocol):
    """Scores float32 ``[H]`` that the heads give to a key without a value; None for no such key."""

    @property
    def scores(self) -> Tensor | None: ...


class NoSinks:
    scores = None


class LearnedSinks:
    def __init__(self, build: Build, name: str, num_heads: int) -> None:
        self.slots = [WeightSlot(name, (num_heads,), Parameter((num_heads,), torch.float32, build.device))]
        self.nbytes = 0
        self.scores: Tensor | None = None
        build.leaves.append(self)

    def finalize(self) -> None:
        self.scores = self.slots[0].destination.take()
        self.nbytes = self.scores.nbytes


class Attention:
    """``out(attend(rotate(norm(q, k)), v))`` with q, k and v from one product."""

    def __init__(self, build: Build, layer: int, spec: AttentionSpec, hidden_size: int, rotation: Rotation) -> None:
        names = build.names
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        qkv_names = tuple(name.format(layer) for name in names.qkv)
        self.spec = spec
        self._num_qk = spec.num_heads + spec.num_kv_heads
        self._rotation = rotation
        arrange = partial(_ungroup, spec) if names.qkv_grouped else None
        parts = (q_size, kv_size, kv_size)
        self.qkv = Linear(build, qkv_names, hidden_size, parts, spec.qkv_bias, names.transposed, "plain", arrange)
        self.qk_norm: QKNorm = NoQKNorm()
        if spec.qk_norm_eps is not None:
            qk_names = (names.q_norm.format(layer), names.k_norm.format(layer))
            self.qk_norm = RmsQKNorm(build, qk_names, spec, spec.qk_norm_eps)
        self.out = Linear(
            build, (names.attention_out.format(layer),), q_size, (hidden_size,), spec.out_bias, names.transposed
        )
        self.sinks: Sinks = NoSinks()
        if spec.sinks:
            self.sinks = LearnedSinks(build, names.sinks.format(layer), spec.num_heads)
        kind: Literal["full", "window", "none"] = "window" if spec.window else "full"
        kind = kind if spec.causal else "none"
        self.kv_spec = KVSpec(kind, spec.num_kv_heads, spec.head_dim, build.dtype, spec.window, build.kv_dtype)

    @property
    def products(self) -> dict[str, Linear]:
        """Its linear layers by what they are called in a profile."""
        return {"qkv": self.qkv, "out": self.out}

    def __call__(self, x: Tensor, tables: Tables, kv: KVLayer, backend: AttentionBackend[Any], meta: Any) -> Tensor:
        """``[T, H] -> [T, H]``, a new tensor; stores this step's keys and values."""
        spec = self.spec
        qkv = self.qkv(x).view(len(x), -1, spec.head_dim)  # [T, H + 2 Hkv, D]
        qk = self._rotation.apply(self.qk_norm(qkv[:, : self._num_qk]), tables)
        backend.store(qk[:, spec.num_heads :], qkv[:, self._num_qk :], kv, meta)
        q = qk[:, : spec.num_heads]
        rules = Rules(spec.scale, spec.window, spec.softcap, self.sinks.scores)
        out = backend.run(q, kv, meta, rules)
        return self.out(out.view(len(x), -1))


def _ungroup(spec: AttentionSpec, stored: Tensor) -> Tensor:
    """Rows that stand key-value head by key-value head (its queries, key, value) as all queries, keys, values."""
    group = spec.num_heads // spec.num_kv_heads
    heads = stored.view(spec.num_kv_heads, group + 2, spec.head_dim, *stored.shape[1:])
    parts = (heads[:, :group], heads[:, group : group + 1], heads[:, group + 1 :])
    return torch.cat([part.flatten(0, 2) for part in parts])
