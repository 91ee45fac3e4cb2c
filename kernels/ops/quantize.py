"""Weights rounded to the nearest integers, without calibration data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.kernels.registry import op

_CHUNK = 1 << 24  # elements that are rounded at a time: a few float32 copies of them are made


@op("weight.round")
def round_weight(weight: Tensor, bits: Literal[4, 8], group: int) -> QuantizedWeight:
    """A weight ``[N, K]`` in symmetric integers, a scale for every ``group`` inputs; 8 bits have one for all.

    8 bits use -127 to 127, the greatest magnitude of a group being 127. 4 bits use -8 to 7, and the greatest magnitude
    is -8, its scale being negative if need be: that wastes none of the sixteen values (as llama.cpp's Q4_0 does).
    """
    rows, inputs = weight.shape
    values = torch.empty(rows, inputs, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, -(-inputs // group), dtype=torch.float32, device=weight.device)
    step = max(1, _CHUNK // inputs)
    round_groups = _round8 if bits == 8 else _round4
    for first in range(0, rows, step):
        part = functional.pad(weight[first : first + step].float(), (0, -inputs % group))
        rounded, scale = round_groups(part.view(part.shape[0], -1, group))
        values[first : first + step] = rounded.flatten(1)[:, :inputs]
        scales[first : first + step] = scale
    return QuantizedWeight(values, scales, None, bits, group)


def _round8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """float32 ``[N, G, group]`` -> its integers + 128, and scales ``[N, G]``."""
    scale = groups.abs().amax(-1) / 127
    return (groups * _inverse(scale)).round_().add_(128).clamp_(1, 255), scale


def _round4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """As `_round8`, + 8; scales are rounded to bfloat16 first, so that the integers make up for it."""
    greatest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scale = (greatest / -8).bfloat16().float()
    return (groups * _inverse(scale)).round_().add_(8).clamp_(0, 15), scale


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale).unsqueeze(-1)
