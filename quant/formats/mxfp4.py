"""MXFP4 of the OCP specification: 4-bit floats and a power of two for 32 inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.quant.formats import float4
from sgl.quant.scheme import Part, groups_of
from sgl.quant.slices import by_rows

_GROUP = 32
_BIAS = 127  # of the exponents that scales consist of


@dataclass(frozen=True, slots=True)
class MXFP4:
    """The ``mxfp4-pack-quantized`` layout; scales are exponents in bytes (e8m0)."""

    @property
    def label(self) -> str:
        return "mxfp4"

    @property
    def format(self) -> str:
        return "mxfp4-pack-quantized"

    @property
    def entry(self) -> dict[str, Any]:
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "group",
            "group_size": _GROUP,
            "dynamic": False,
            "scale_dtype": "torch.uint8",
            "zp_dtype": "torch.uint8",
        }
        return {"weights": weights, "input_activations": None, "output_activations": None}

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        groups = groups_of(inner, _GROUP)
        scales = (torch.uint8, torch.float8_e8m0fnu)
        return (
            Part("weight_packed", (torch.uint8,), ((rows, inner // 2),)),
            Part("weight_scale", scales, ((rows, groups),)),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        exponents = tensors["weight_scale"].view(torch.uint8)
        if bool((exponents == 255).any()):
            raise ValueError("weight_scale holds 255, which stands for no number")
        scales = exponents.view(torch.float8_e8m0fnu).float()
        return float4.decode(tensors["weight_packed"], scales)

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return by_rows(self._encode, weight)

    def _encode(self, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.float().view(weight.shape[0], -1, _GROUP)
        peaks = groups.abs().amax(-1).clamp(min=2.0**-120)
        exponents = torch.frexp(peaks).exponent - 3  # so that the greatest lies between 4 and 8; the format ends at 6
        scales = (exponents + _BIAS).to(torch.uint8)
        steps = groups / scales.view(torch.float8_e8m0fnu).float().unsqueeze(-1)
        packed = float4.encode(steps.clamp(-float4.MOST, float4.MOST).flatten(1))
        return {"weight_packed": packed, "weight_scale": scales}
