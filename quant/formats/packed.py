"""Weight-only integers of 4 or 8 bits in 32-bit words: the ``pack-quantized`` layout of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.kernels.ops.quantize import round_weight
from sgl.quant.formats.packing import ordered, pack, unpack
from sgl.quant.scheme import FLOATS, INTEGERS, Part, groups_of
from sgl.quant.slices import by_rows


@dataclass(frozen=True, slots=True)
class Packed:
    """``weight_packed`` int32 ``[N, K / values per word]``, ``weight_scale`` ``[N, G]`` and, packed along the outputs,
    ``weight_zero_point``.

    Args:
        group: inputs that share a scale; None for a scale per output.
        symmetric: else there are zero points.
    """

    bits: Literal[4, 8] = 4
    group: int | None = 128
    symmetric: bool = True

    @property
    def label(self) -> str:
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "") + ("" if self.symmetric else "-asym")

    @property
    def format(self) -> str:
        return "pack-quantized"

    @property
    def entry(self) -> dict[str, Any]:
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False}
        weights |= {"strategy": "group", "group_size": self.group} if self.group else {"strategy": "channel"}
        return {"weights": weights, "input_activations": None, "output_activations": None}

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        groups, per_word = groups_of(inner, self.group) if self.group else 1, 32 // self.bits
        packed, points = -(-inner // per_word), -(-rows // per_word)
        return (
            Part("weight_packed", (torch.int32,), ((rows, packed),)),
            Part("weight_scale", FLOATS, ((rows, groups),)),
            Part("weight_zero_point", (torch.int32,), ((points, groups),), optional=self.symmetric),
            Part("weight_shape", INTEGERS, ((2,),), optional=True),
            Part("weight_g_idx", INTEGERS, ((inner,),), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        shape = tensors.get("weight_shape")
        if shape is not None and shape.tolist() != [rows, inner]:
            raise ValueError(f"weight_shape is {shape.tolist()} instead of {[rows, inner]}")
        group = self.group or inner
        values = unpack(tensors["weight_packed"], self.bits, inner)
        zeros = None
        if not self.symmetric:
            zeros = unpack(tensors["weight_zero_point"].t().contiguous(), self.bits, rows).t().contiguous()
        order = None
        groups = tensors.get("weight_g_idx")
        if groups is not None and not bool((groups == -1).all()):
            order = ordered(groups, inner, group)
            values = values if order is None else values[:, order]
        scales = tensors["weight_scale"].float()
        return QuantizedWeight(values.contiguous(), scales, zeros, self.bits, group, order, weight_only=True)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        rows, inner = weight.shape
        groups_of(inner, self.group or inner)
        shape = torch.tensor([rows, inner], dtype=torch.int64)
        return {**by_rows(self._encode, weight), "weight_shape": shape}

    def _encode(self, weight: Tensor) -> dict[str, Tensor]:
        rows, inner = weight.shape
        group = self.group or inner
        if self.symmetric:
            by_group = round_weight(weight.reshape(-1, group), self.bits, group)
            values, scales = by_group.values.view(rows, inner), by_group.scales.view(rows, -1)
            points = {}
        else:
            rounded = round_between(weight, self.bits, group)
            assert rounded.zeros is not None
            values, scales = rounded.values, rounded.scales
            points = {"weight_zero_point": pack(rounded.zeros.t().contiguous(), self.bits).t().contiguous()}
        scales = scales.bfloat16() if self.bits == 4 else scales
        return {"weight_packed": pack(values, self.bits), "weight_scale": scales, **points}


def round_between(weight: Tensor, bits: Literal[4, 8], group: int) -> QuantizedWeight:
    """Integers from the least to the greatest number of every ``group`` inputs, zero being one of the steps."""
    rows, inner = weight.shape
    groups = functional.pad(weight.float(), (0, -inner % group)).view(rows, -1, group)
    most = (1 << bits) - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = (high - low) / most
    scales = scales.bfloat16().float() if bits == 4 else scales
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    zeros = (-low * inverse).round_().clamp_(0, most)
    values = (groups * inverse.unsqueeze(-1)).round_().add_(zeros.unsqueeze(-1)).clamp_(0, most)
    values, zeros = values.to(torch.uint8).flatten(1)[:, :inner].contiguous(), zeros.to(torch.uint8)
    return QuantizedWeight(values, scales, zeros, bits, group, weight_only=True)
