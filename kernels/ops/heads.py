"""A product for every head: what makes queries and values of heads meet a vector that the heads share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.ops.linear import Allocate, LinearFn, fresh
from sgl.kernels.registry import op


@dataclass(frozen=True, slots=True)
class PlainHeads:
    weight: Tensor  # [H, N, K]
    packed_bytes: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)


@op("matmul.heads")
def matmul_heads(weight: Tensor, allocate: Allocate = fresh) -> LinearFn:
    """Prepares ``y[:, h] = x[:, h] @ weight[h].T`` for weight ``[H, N, K]``: x ``[T, H, K]`` to ``[T, H, N]``, both of
    any strides."""
    return PlainHeads(weight)
