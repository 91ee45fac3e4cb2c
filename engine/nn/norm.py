"""Norms of the hidden state and of query and key heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sgl.engine.nn.spec import AttentionSpec, NormSpec
from sgl.engine.nn.weights import Build, WeightSlot

_TENSORS = {"rms": ("weight",), "layer": ("weight", "bias")}


class Norm:
    """A norm of the spec's kind over hidden states ``[T, H]``.

    Attributes:
        normalize, add_normalize: the ops; what shows or measures them can stand in their places.
    """

    def __init__(self, build: Build, name: str, spec: NormSpec, size: int) -> None:
        self.slots = [WeightSlot(f"{name}.{t}", (size,), build.parameter(size)) for t in _TENSORS[spec.kind]]
        self.nbytes = 0
        self.normalize: Callable[..., Tensor] = build.kernels[f"norm.{spec.kind}"]
        self.add_normalize: Callable[..., tuple[Tensor, Tensor]] = build.kernels[f"norm.add_{spec.kind}"]
        self.eps = spec.eps
        self.tensors: tuple[Tensor, ...] = ()
        self._offset = spec.offset
        build.leaves.append(self)

    def finalize(self) -> None:
        self.tensors = tuple(slot.destination.take() for slot in self.slots)
        if self._offset:  # the sum is kept in float32: bfloat16 would round it away
            self.tensors = (self.tensors[0].float() + self._offset, *self.tensors[1:])
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors)

    def __call__(self, x: Tensor) -> Tensor:
        return self.normalize(x, *self.tensors, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, sum); both inputs are given up."""
        return self.add_normalize(x, residual, *self.tensors, self.eps)


class NoNorm:
    def __call__(self, x: Tensor) -> Tensor:
        return x

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(sum, sum), as a norm would answer."""
        total = residual.add_(x)
        return total, total


class QKNorm(Protocol):
    """What happens to query and key heads ``[T, H + Hkv, D]`` before their rotation."""

    def __call__(self, x: Tensor) -> Tensor: ...


class NoQKNorm:
    def __call__(self, x: Tensor) -> Tensor:
        return x


class RmsQKNorm:
    """Every head by itself, queries under one weight ``[D]`` and keys under another.

    Attributes:
        normalize: the op.
        heads: how many of both.
    """

    def __init__(self, build: Build, names: tuple[str, str], spec: AttentionSpec, eps: float) -> None:
        size = spec.head_dim
        both = build.parameter(2 * size)
        self.slots = [WeightSlot(f"{name}.weight", (size,), both, i * size) for i, name in enumerate(names)]
        self.nbytes = 0
        self.normalize: Callable[..., Tensor] = build.kernels["norm.rms"]
        self.eps = eps
        self.heads = (spec.num_heads, spec.num_kv_heads)
        self.weight = torch.empty(0)
        build.leaves.append(self)

    def finalize(self) -> None:
        q, k = self.slots[0].destination.take().view(2, -1)
        heads, kv_heads = self.heads
        self.weight = torch.cat((q.expand(heads, -1), k.expand(kv_heads, -1)))  # [H + Hkv, D]
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight, self.eps)
