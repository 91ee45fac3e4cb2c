"""fp8 (e4m3) with a scale per tensor, per output, or per block: compressed-tensors, DeepSeek, plain Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.linear import FP8_MAX, Activations, Float8Weight
from sgl.quant.scheme import FLOATS, Part
from sgl.quant.slices import by_rows

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Float8:
    """``weight`` in fp8 and the factor of every block of it.

    Args:
        scale: what shares a factor.
        activations: how inputs are rounded where fp8 products run.
        block: outputs and inputs of a block.
        name: of the tensor of factors.
    """

    scale: Literal["tensor", "channel", "block"] = "channel"
    activations: Activations = "token"
    block: tuple[int, int] = (128, 128)
    name: str = "weight_scale"

    @property
    def label(self) -> str:
        return f"fp8-{self.scale}"

    @property
    def format(self) -> str:
        return "float-quantized"

    @property
    def entry(self) -> dict[str, Any]:
        weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": self.scale}
        weights["dynamic"] = False
        if self.scale == "block":
            weights["block_structure"] = list(self.block)
        kinds = {"token": ("token", True), "tensor": ("tensor", False), "block": ("group", True)}
        inputs: dict[str, Any] | None = None
        if self.activations != "none":
            strategy, is_dynamic = kinds[self.activations]
            inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": is_dynamic}
            if strategy == "group":
                inputs["group_size"] = 128
        return {"weights": weights, "input_activations": inputs, "output_activations": None}

    def _unit(self, rows: int, inner: int) -> tuple[int, int]:
        return {"tensor": (rows, inner), "channel": (1, inner), "block": self.block}[self.scale]

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        unit = self._unit(rows, inner)
        grid = (-(-rows // unit[0]), -(-inner // unit[1]))
        shapes = {"tensor": ((), (1,), (1, 1)), "channel": ((rows,), (rows, 1)), "block": (grid,)}
        return (
            Part("weight", (FP8,), ((rows, inner),)),
            Part(self.name, FLOATS, shapes[self.scale]),
            Part("input_scale", FLOATS, ((), (1,)), optional=True),
            Part("activation_scale", FLOATS, ((), (1,)), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> Float8Weight:
        unit = self._unit(rows, inner)
        scales = tensors[self.name].float().reshape(-(-rows // unit[0]), -(-inner // unit[1]))
        given = tensors.get("input_scale", tensors.get("activation_scale"))
        activations, input_scale = self.activations, None
        if activations == "tensor":
            if given is None or float(given) <= 0:
                raise ValueError("input_scale is missing or not positive, but activations are static")
            input_scale = float(given)
        return Float8Weight(tensors["weight"], scales.contiguous(), unit, activations, input_scale)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return self._encode(weight) if self.scale == "tensor" else by_rows(self._encode, weight)

    def _encode(self, weight: Tensor) -> dict[str, Tensor]:
        rows, inner = weight.shape
        high, wide = self._unit(rows, inner)
        padded = functional.pad(weight.float(), (0, -inner % wide, 0, -rows % high))
        blocks = padded.view(padded.shape[0] // high, high, -1, wide)
        scales = (blocks.abs().amax((1, 3)) / FP8_MAX).clamp(min=1e-12)  # [R, C]
        steps = (blocks / scales[:, None, :, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
        values = steps.view(torch.uint8).view(padded.shape)[:rows, :inner].contiguous().view(FP8)
        return {"weight": values, self.name: scales.view(1) if self.scale == "tensor" else scales}
