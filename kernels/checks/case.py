"""What a case is: one call of an op, and its true answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.ops.linear import Form


@dataclass(frozen=True)
class Case:
    """One call. ``run(fn, dtype)`` returns (got, expected in float64), each a list of tensors."""

    op: str
    name: str
    run: Callable[[Callable[..., Any], torch.dtype], tuple[list[Tensor], list[Tensor]]]
    result: torch.dtype | None = None  # of the answer; None if it is the inputs'
    large: bool = False  # of a real model's size: for a GPU


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    y = x @ weight.t() + (0 if bias is None else bias.double())
    gate, up = y.chunk(2, -1) if form == "gated" else (y, y)
    return torch.nn.functional.silu(gate) * up if form == "gated" else y
