"""torchao's tensors as its safetensors support flattens them: fp8, int8, and small integers in bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.kernels.ops.linear import Activations, Float8Weight, QuantizedWeight
from sgl.quant.scheme import FLOATS, INTEGERS, Part, Scheme
from sgl.quant.stored import Fields, Layout, Tensors, is_kept

_DATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
_SIGNED = (torch.int8, *INTEGERS)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Integers in int8, a scale for every group of inputs; those of 4 bits become half bytes again.

    Args:
        groups: scales of an output.
        weight_only: activations stay what they are.
    """

    groups: int
    weight_only: bool

    @property
    def label(self) -> str:
        return "torchao-int8" if self.groups == 1 else "torchao-intx"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        if inner % self.groups:
            raise ValueError(f"{inner} inputs cannot be shared out to {self.groups} groups")
        shapes = ((rows, self.groups), *(((rows,), (1, 1), (1,), ()) if self.groups == 1 else ()))
        return (
            Part(_DATA, (torch.int8,), ((rows, inner),)),
            Part(_SCALE, FLOATS, shapes),
            Part(_ZERO, _SIGNED, shapes, optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        shape, values = (rows, self.groups), tensors[_DATA]
        scales = tensors[_SCALE].float().reshape(-1, self.groups).expand(shape).contiguous()
        points = tensors.get(_ZERO)
        zeros = torch.zeros(shape, dtype=torch.int32) if points is None else points.int().reshape(-1, self.groups)
        is_short = self.groups > 1 and int(values.min()) >= -8 and int(values.max()) <= 7 and int(zeros.min()) >= -8
        middle = 8 if is_short else 128
        stored = None if not bool(zeros.any()) else (zeros + middle).to(torch.uint8).expand(shape).contiguous()
        return QuantizedWeight(
            (values.short() + middle).to(torch.uint8),
            scales,
            stored,
            4 if is_short else 8,
            inner // self.groups,
            weight_only=self.weight_only,
        )


@dataclass(frozen=True, slots=True)
class Floats8:
    """fp8 with a scale for every block of ``unit`` outputs and inputs."""

    unit: tuple[int, int]
    activations: Activations

    @property
    def label(self) -> str:
        return "torchao-fp8"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        grid = (-(-rows // self.unit[0]), -(-inner // self.unit[1]))
        return (
            Part(_DATA, (torch.float8_e4m3fn,), ((rows, inner),)),
            Part(_SCALE, FLOATS, (grid, *(((),) if grid == (1, 1) else ()))),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> Float8Weight:
        grid = (-(-rows // self.unit[0]), -(-inner // self.unit[1]))
        return Float8Weight(tensors[_DATA], tensors[_SCALE].float().reshape(grid), self.unit, self.activations)


def read(fields: Fields) -> Layout:
    kind = json.dumps(fields.get("quant_type"))
    kept = fields.names("modules_to_not_convert")
    is_dynamic = "DynamicActivation" in kind

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        data, scale = tensors.get(_DATA), tensors.get(_SCALE)
        if is_kept(module, kept) or data is None or scale is None:
            return None
        if data.dtype == torch.int8 and len(data.shape) == 2 and "_weight_act_pre_scale" not in tensors:
            groups = scale.shape[1] if len(scale.shape) == 2 else 1
            return Bytes(groups, weight_only=not is_dynamic or groups > 1)
        if data.dtype == torch.float8_e4m3fn and len(data.shape) == 2:
            grid = scale.shape if len(scale.shape) == 2 else (1, 1)
            unit = (-(-data.shape[0] // grid[0]), -(-data.shape[1] // grid[1]))
            return Floats8(unit, "token" if is_dynamic else "none")
        raise ModelError(
            f"{module} is saved by torchao as {data.dtype} of {len(data.shape)} dimensions ({kind[:200]}), which is "
            "not supported; supported are Float8Tensor, Int8Tensor and IntxUnpackedToInt8Tensor."
        )

    return Layout("torchao", scheme_of)
