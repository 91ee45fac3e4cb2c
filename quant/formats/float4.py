"""4-bit floats (e2m1): a table of sixteen numbers, two codes in a byte; does not know how scales are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.quant.formats.packing import nibbles, pack_nibbles

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MOST = _MAGNITUDES[-1]


def decode(packed: Tensor, scales: Tensor) -> QuantizedWeight:
    """uint8 ``[N, K / 2]`` and float32 scales ``[N, G]`` -> the weight: every number is half an integer up to 12."""
    table = torch.tensor((*_MAGNITUDES, *(-value for value in _MAGNITUDES)), device=packed.device)
    integers = (2 * table + 128).to(torch.uint8)[nibbles(packed).int()]
    return QuantizedWeight(integers, scales / 2, None, 8, integers.shape[1] // scales.shape[1], weight_only=True)


def encode(values: Tensor) -> Tensor:
    """float32 ``[R, 2C]`` -> uint8 ``[R, C]``, to the nearest number, ties to the even code."""
    steps = torch.tensor(_MAGNITUDES, device=values.device)
    middles = (steps[1:] + steps[:-1]) / 2
    magnitude = values.abs()
    below, above = (torch.bucketize(magnitude, middles, right=right) for right in (False, True))
    codes = torch.where(below % 2 == 0, below, above)  # they differ only on a middle
    return pack_nibbles((codes + 8 * torch.signbit(values)).to(torch.uint8))
