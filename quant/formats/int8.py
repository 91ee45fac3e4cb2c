"""int8 with a scale per tensor, per output or per group of inputs, in bytes: the ``int-quantized`` layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.kernels.ops.quantize import round_weight
from sgl.quant.scheme import FLOATS, Part
from sgl.quant.slices import by_rows


@dataclass(frozen=True, slots=True)
class Int8:
    """``weight`` in int8 and its scales.

    Args:
        scale: what shares a scale; a number is a group of inputs of one output.
        activations: ``none`` for W8A16; ``token`` and ``tensor`` run alike, with dynamic scales per token.
        symmetric: else there are zero points.
    """

    scale: Literal["tensor", "channel"] | int = "channel"
    activations: Literal["none", "token", "tensor"] = "token"
    symmetric: bool = True

    @property
    def label(self) -> str:
        return "int8" if self.scale in ("tensor", "channel") else f"int8-g{self.scale}"

    @property
    def format(self) -> str:
        return "int-quantized"

    @property
    def entry(self) -> dict[str, Any]:
        common = {"num_bits": 8, "type": "int"}
        weights: dict[str, Any] = {**common, "symmetric": self.symmetric, "dynamic": False}
        weights |= (
            {"strategy": self.scale} if isinstance(self.scale, str) else {"strategy": "group", "group_size": self.scale}
        )
        inputs = None
        if self.activations != "none":
            inputs = {
                **common,
                "symmetric": True,
                "strategy": self.activations,
                "dynamic": self.activations == "token",
            }
        return {"weights": weights, "input_activations": inputs, "output_activations": None}

    def _groups(self, inner: int) -> int:
        return -(-inner // self.scale) if isinstance(self.scale, int) else 1

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        shapes = ((), (1,), (1, 1)) if self.scale == "tensor" else ((rows, self._groups(inner)), (rows,))
        return (
            Part("weight", (torch.int8,), ((rows, inner),)),
            Part("weight_scale", FLOATS, shapes),
            Part("weight_zero_point", (torch.int8, torch.int32, torch.int64), shapes, optional=True),
            Part("input_scale", FLOATS, ((), (1,)), optional=True),
            Part("input_zero_point", (torch.int8, torch.int32, torch.int64), ((), (1,)), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        shape = (rows, self._groups(inner))
        values = (tensors["weight"].view(torch.uint8) ^ 128).contiguous()
        scales = tensors["weight_scale"].float().reshape(-1, shape[1]).expand(shape).contiguous()
        zeros = None
        if (points := tensors.get("weight_zero_point")) is not None and bool(points.any()):
            zeros = (points.int() + 128).to(torch.uint8).reshape(-1, shape[1]).expand(shape).contiguous()
        group = self.scale if isinstance(self.scale, int) else inner
        return QuantizedWeight(values, scales, zeros, 8, group, weight_only=self.activations == "none")

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        if self.scale == "tensor" or not self.symmetric:
            raise ValueError("int8 is written symmetric, with a scale per output or per group of inputs")
        return by_rows(self._encode, weight)

    def _encode(self, weight: Tensor) -> dict[str, Tensor]:
        inner = weight.shape[1]
        if isinstance(self.scale, int):
            rows = weight.float().view(-1, self.scale)
            rounded = round_weight(rows, 8, self.scale)
        else:
            rounded = round_weight(weight, 8, inner)
        values = (rounded.values ^ 128).view(torch.int8).view(weight.shape)
        return {"weight": values, "weight_scale": rounded.scales.view(weight.shape[0], -1)}
