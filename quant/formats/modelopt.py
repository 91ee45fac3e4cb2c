"""NVIDIA ModelOpt's checkpoints: fp8 per tensor, and NVFP4 with a factor where others have a divisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.quant.formats import float4
from sgl.quant.formats.float8 import Float8
from sgl.quant.scheme import Part, Scheme, groups_of
from sgl.quant.stored import Fields, Layout, Tensors

_GROUP = 16
_F32 = (torch.float32,)


@dataclass(frozen=True, slots=True)
class FactoredNVFP4:
    """``weight`` in pairs of 4-bit floats, ``weight_scale`` in fp8 for 16 inputs, ``weight_scale_2`` for the tensor."""

    @property
    def label(self) -> str:
        return "nvfp4"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        groups = groups_of(inner, _GROUP)
        return (
            Part("weight", (torch.uint8,), ((rows, inner // 2),)),
            Part("weight_scale", (torch.float8_e4m3fn,), ((rows, groups),)),
            Part("weight_scale_2", _F32, ((), (1,))),
            Part("input_scale", _F32, ((), (1,)), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        scales = tensors["weight_scale"].float() * tensors["weight_scale_2"].reshape(())
        return float4.decode(tensors["weight"], scales)


def read(fields: Fields) -> Layout:
    algorithm = str(fields.get("quant_algo", "")).upper()
    schemes: dict[str, Scheme] = {"FP8": Float8("tensor", "tensor"), "NVFP4": FactoredNVFP4()}
    if algorithm not in schemes:
        fields.refuse("quant_algo", f"is {algorithm!r}; supported are {', '.join(schemes)}")
    kept = [*fields.names("exclude_modules"), *fields.names("ignore")]

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        if any(fnmatchcase(module, pattern) for pattern in kept) or "weight_scale" not in tensors:
            return None
        return schemes[algorithm]

    return Layout("modelopt", scheme_of)
