"""Weights some rows at a time, so that copies of them in wider types stay small; knows no format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_UNIT = 128  # rows: a multiple of what any format stores together
_NUMBERS = 1 << 19


def slices(rows: int, inner: int) -> list[slice]:
    """Rows of about half a million numbers each."""
    step = max(_UNIT, _NUMBERS // inner // _UNIT * _UNIT)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def by_rows(encode: Callable[[Tensor], dict[str, Tensor]], weight: Tensor) -> dict[str, Tensor]:
    """What ``encode`` makes of a weight ``[N, K]``, one tensor for all slices; they grow with N, in whole units."""
    parts = [encode(weight[place]) for place in slices(*weight.shape)]
    return {suffix: _joined([part[suffix] for part in parts]) for suffix in parts[0]}


def rows_of(tensors: Mapping[str, Tensor], rows: int, place: slice) -> dict[str, Tensor]:
    """The tensors of a slice; what does not grow with the rows is shared."""
    found = {}
    for suffix, tensor in tensors.items():
        if tensor.dim() == 2 and len(tensor) > 1:
            unit = next(unit for unit in (1 << bit for bit in range(64)) if -(-rows // unit) <= len(tensor))
            tensor = tensor[place.start // unit : -(-place.stop // unit)]
        found[suffix] = tensor
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    """As bytes, since not every type can be put together."""
    return parts[0] if len(parts) == 1 else torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
