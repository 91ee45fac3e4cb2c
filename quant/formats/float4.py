"""4-bit floats (e2m1): a table of sixteen numbers, two codes in a byte; knows no scales."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.quant.formats.packing import nibbles, pack_nibbles

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MOST = _MAGNITUDES[-1]


def decode(packed: Tensor) -> Tensor:
    """uint8 ``[R, C]`` -> float32 ``[R, 2C]``."""
    table = torch.tensor((*_MAGNITUDES, *(-value for value in _MAGNITUDES)), device=packed.device)
    return table[nibbles(packed).int()]


def encode(values: Tensor) -> Tensor:
    """float32 ``[R, 2C]`` -> uint8 ``[R, C]``, to the nearest number, ties to the even code."""
    steps = torch.tensor(_MAGNITUDES, device=values.device)
    middles = (steps[1:] + steps[:-1]) / 2
    magnitude = values.abs()
    below, above = (torch.bucketize(magnitude, middles, right=right) for right in (False, True))
    codes = torch.where(below % 2 == 0, below, above)  # they differ only on a middle
    return pack_nibbles((codes + 8 * torch.signbit(values)).to(torch.uint8))
