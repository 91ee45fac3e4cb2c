"""Rotation of query and key heads by their position."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.kernels.registry import impl, op


@op("rope.apply")
def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs ``(i, i + D/2)`` of every head; returns a new contiguous tensor.

    x ``[T, H, D]`` (any strides with a contiguous last dimension); cos and sin ``[T, 1, D]`` in x's dtype. sin carries
    the sign of the rotation: its first half is negative.
    """
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((second, first), -1) * sin


@impl("rope.apply", "torch")
def apply_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
