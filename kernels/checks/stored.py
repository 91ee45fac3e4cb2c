"""Random weights as checkpoints hold them, with the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgl.kernels.checks.case import random
from sgl.kernels.ops.linear import FP8_MAX, Activations, Float8Weight, QuantizedWeight, StoredWeight

_FP8 = torch.float8_e4m3fn
_WHOLE = 1 << 30


@dataclass(frozen=True)
class Stored:
    """A weight, its numbers in float64 ``[N, K]``, and inputs as its product sees them."""

    weight: StoredWeight
    numbers: Tensor
    seen: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """``make(N, K)`` gives a weight that ``op`` computes with."""

    name: str
    op: str
    make: Callable[[int, int], Stored]


def _integers(bits: Literal[4, 8], group: int, zeros: bool, weight_only: bool) -> Format:
    def make(n: int, k: int) -> Stored:
        per_scale, most = min(group, k), 1 << bits
        groups = -(-k // per_scale)
        values = torch.randint(0, most, (n, k), dtype=torch.uint8)
        scales = (random(n, groups) * 4 * k**-0.5 / most).bfloat16().float()
        points = torch.randint(0, most, (n, groups), dtype=torch.uint8) if zeros else None
        column = torch.arange(k) // per_scale
        middle = torch.full((n, groups), most / 2) if points is None else points
        numbers = (values.double() - middle[:, column].double()) * scales.double()[:, column]

        def seen(x: Tensor) -> Tensor:
            return x.double() if weight_only else in_steps(x, per_scale)

        return Stored(QuantizedWeight(values, scales, points, bits, per_scale, weight_only=weight_only), numbers, seen)

    name = f"int{bits}{'' if group == _WHOLE else f'-g{group}'}{'z' if zeros else ''}"
    return Format(f"{name}{' weights' if weight_only else ''}", _op(weight_only), make)


def _op(weight_only: bool) -> str:
    return "linear.weight_only" if weight_only else "linear.quantized"


def _floats(block: tuple[int, int], activations: Activations) -> Format:
    def make(n: int, k: int) -> Stored:
        height, width = min(block[0], n), min(block[1], k) if block[1] == _WHOLE else block[1]
        values = (random(n, k) * 100).to(_FP8)
        scales = (torch.rand(-(-n // height), -(-k // width)) + 0.5) * k**-0.5 / 100
        static = 0.01 + 0.01 * torch.rand(()).item() if activations == "tensor" else None
        numbers = values.double() * scales.double()[torch.arange(n) // height][:, torch.arange(k) // width]
        weight = Float8Weight(values, scales, (height, width), activations, static)
        return Stored(weight, numbers, lambda x: in_fp8(x, activations, static))

    shape = "x".join("all" if part == _WHOLE else str(part) for part in block)
    return Format(f"fp8 {shape} {activations}", "linear.fp8", make)


def in_steps(x: Tensor, group: int) -> Tensor:
    """Every group of a row in multiples of its greatest magnitude / 127; in float32, on which ties depend."""
    parts = []
    for part in torch.split(x.float(), group, 1):
        step = part.abs().amax(1, keepdim=True) / 127
        parts.append(torch.where(step > 0, (part / step).round().double() * step, 0.0))
    return torch.cat(parts, 1)


def in_fp8(x: Tensor, activations: Activations, static: float | None) -> Tensor:
    """x in multiples of its scales, which are float32."""
    if activations == "none":
        return x.double()
    parts = []
    for part in torch.split(x.float(), 128 if activations == "block" else x.shape[1], 1):
        peak = part.abs().amax(1, keepdim=True).clamp(min=1e-12)
        scale = peak / FP8_MAX if static is None else torch.full_like(peak, static)
        steps = (part / scale).clamp(-FP8_MAX, FP8_MAX).to(_FP8)
        parts.append(steps.double() * scale.double())
    return torch.cat(parts, 1)


FORMATS: tuple[Format, ...] = (
    _integers(8, _WHOLE, False, False),
    _integers(4, 32, False, False),
    _integers(4, 64, True, True),
    _integers(8, _WHOLE, False, True),
    _floats((128, 128), "block"),
    _floats((1, _WHOLE), "token"),
    _floats((_WHOLE, _WHOLE), "tensor"),
    _floats((1, _WHOLE), "none"),
)
