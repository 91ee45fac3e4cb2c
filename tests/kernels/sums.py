"""What holds for every linear layer that rounds no activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_sums(linear: Callable[[Tensor], Tensor], numbers: Tensor, bias: Tensor, row_counts: Sequence[int]) -> None:
    """Sums are as good as those in float32, and the same for any number of rows.

    Args:
        numbers: the weight in float64, ``[outputs, inputs]``.
    """
    x = torch.randn(max(row_counts), numbers.shape[1]).bfloat16()
    together = linear(x)
    size = x.double().abs() @ numbers.abs().t() + bias.double().abs()
    assert ((together - (x.double() @ numbers.t() + bias.double())).abs() / size).max() < 1e-6
    for count in row_counts:
        assert torch.equal(linear(x[:count]), together[:count])
