"""The products of heads, one by one through the kernels of linear layers: a row's answer is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.cpu import native
from sgl.kernels.cpu.linear import linear
from sgl.kernels.ops.linear import Allocate, LinearFn, fresh
from sgl.kernels.registry import impl


@dataclass(frozen=True, slots=True)
class HeadByHead:
    heads: Sequence[LinearFn]

    @property
    def packed_bytes(self) -> int:
        return sum(head.packed_bytes for head in self.heads)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([head(x[:, n]) for n, head in enumerate(self.heads)], 1)


@impl("matmul.heads", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def matmul_heads(weight: Tensor, allocate: Allocate = fresh) -> LinearFn:
    return HeadByHead([linear(head, None, "plain", allocate) for head in weight])
