"""NVFP4: 4-bit floats, a scale in fp8 for 16 inputs, and one number that divides all scales of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sgl.kernels.ops.linear import FP8_MAX, QuantizedWeight
from sgl.quant.formats import float4
from sgl.quant.scheme import FLOATS, Part, groups_of
from sgl.quant.slices import by_rows, slices

_GROUP = 16


@dataclass(frozen=True, slots=True)
class NVFP4:
    """The ``nvfp4-pack-quantized`` layout; activations of W4A4 are left as they are."""

    activations: Literal["none", "group"] = "none"

    @property
    def label(self) -> str:
        return "nvfp4"

    @property
    def format(self) -> str:
        return "nvfp4-pack-quantized"

    @property
    def entry(self) -> dict[str, Any]:
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "tensor_group",
            "group_size": _GROUP,
            "dynamic": False,
        }
        inputs = {**weights, "dynamic": "local"} if self.activations == "group" else None
        return {"weights": weights, "input_activations": inputs, "output_activations": None}

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        groups = groups_of(inner, _GROUP)
        return (
            Part("weight_packed", (torch.uint8,), ((rows, inner // 2),)),
            Part("weight_scale", (torch.float8_e4m3fn,), ((rows, groups),)),
            Part("weight_global_scale", FLOATS, ((), (1,))),
            Part("input_global_scale", FLOATS, ((), (1,)), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        divisor = tensors["weight_global_scale"].float().reshape(())
        if not float(divisor) > 0:
            raise ValueError("weight_global_scale is not positive")
        scales = tensors["weight_scale"].float() / divisor
        return float4.decode(tensors["weight_packed"], scales)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        greatest = torch.stack([weight[place].abs().amax() for place in slices(*weight.shape)]).amax().float()
        divisor = FP8_MAX * float4.MOST / greatest.clamp(min=1e-12)
        return {**by_rows(partial(self._encode, divisor), weight), "weight_global_scale": divisor.view(1)}

    def _encode(self, divisor: Tensor, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.float().view(weight.shape[0], -1, _GROUP)
        peaks = groups.abs().amax(-1)
        scales = (peaks * divisor / float4.MOST).clamp(max=FP8_MAX).to(torch.float8_e4m3fn)
        steps = scales.float() / divisor
        inverse = torch.where(steps > 0, 1 / steps, 0.0)
        packed = float4.encode((groups * inverse.unsqueeze(-1)).flatten(1))
        return {"weight_packed": packed, "weight_scale": scales}
