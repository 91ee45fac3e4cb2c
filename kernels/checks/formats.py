"""Cases of products with weights that checkpoints hold in four or eight bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from sgl.kernels.checks.case import Case, product, random
from sgl.kernels.checks.stored import in_fp8
from sgl.kernels.ops.linear import Activations, CodedWeight, Float8Weight, Form, QuantizedWeight

Answer = tuple[list[Tensor], list[Tensor]]
_FP8 = torch.float8_e4m3fn
_WHOLE = 1 << 30
_FORMS: tuple[Form, ...] = ("plain", "gated", "float32")
_SHAPES = ((1, 64, 112), (2, 100, 6), (33, 320, 70), (0, 64, 16), (5, 200, 144))
_INTEGERS: tuple[tuple[Literal[4, 8], int, bool], ...] = (
    *((4, 32, True), (4, 64, False), (4, 128, True)),
    *((8, 16, False), (8, 32, False), (8, 128, True), (8, _WHOLE, False), (8, _WHOLE, True)),
)
"""Bits, inputs that share a scale, and whether there are zero points."""

_FP8_FORMATS: tuple[tuple[tuple[int, int], Activations], ...] = (
    ((_WHOLE, _WHOLE), "none"),
    ((1, _WHOLE), "none"),
    ((128, 128), "none"),
    ((1, _WHOLE), "token"),
    ((_WHOLE, _WHOLE), "tensor"),
    ((128, 128), "block"),
)

_CODED: tuple[tuple[tuple[int, int] | None, int], ...] = (
    *(((1, _WHOLE), 0), ((_WHOLE, _WHOLE), 0), ((128, 128), 0), ((64, 32), 0)),
    *((None, 32), (None, 64), (None, _WHOLE)),
)
"""The blocks of fp8, or None and inputs of a group of codes of four bits."""


def cases() -> Iterator[Case]:
    for index, shape in enumerate(_SHAPES):
        for bits, group, zeros in _INTEGERS:
            yield _weight_only(_FORMS[(index + group // 4) % 3], bits, group, zeros, index == 2, *shape)
        for number, (block, activations) in enumerate(_FP8_FORMATS):
            yield _fp8(_FORMS[(index + number) % 3], block, activations, *shape)
        for number, (unit, group) in enumerate(_CODED):
            if unit is None and shape[1] % 8:  # rows that end within a word
                continue
            yield _coded(_FORMS[(index + number) % 3], unit, group, *shape)
    for rows in (1, 64, 2048):
        yield _weight_only("plain", 4, 128, True, False, rows, 4096, 6144, large=True)
        yield _fp8("plain", (128, 128), "block", rows, 4096, 6144, large=True)
        yield _fp8("gated", (1, _WHOLE), "token", rows, 4096, 2 * 14336, large=True)


def _result(form: Form) -> torch.dtype | None:
    return torch.float32 if form == "float32" else None


def _weight_only(
    form: Form,
    bits: Literal[4, 8],
    group: int,
    zeros: bool,
    reordered: bool,
    tokens: int,
    k: int,
    n: int,
    large: bool = False,
) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        per_scale, most = min(group, k), 1 << bits
        groups = -(-k // per_scale)
        values = torch.randint(0, most, (n, k), dtype=torch.uint8)
        scales = (random(n, groups) * k**-0.5 / most).bfloat16().float()
        points = torch.randint(0, most, (n, groups), dtype=torch.uint8) if zeros else None
        order = torch.randperm(k) if reordered else None
        x, bias = random(tokens, k).to(dtype), random(n).to(dtype)
        stored = QuantizedWeight(values.clone(), scales, points, bits, per_scale, order, weight_only=True)
        got = fn(stored, bias, form)(x)
        column = torch.arange(k) // per_scale
        middle = torch.full((n, groups), most / 2) if points is None else points
        weight = (values.double() - middle[:, column].double()) * scales.double()[:, column]
        seen = x.double() if order is None else x.double()[:, order]
        return [got], [product(seen, weight, bias, form)]

    name = f"int{bits}-g{group if group < k else 'row'}{'z' if zeros else ''} {form} {tokens}x{k}x{n}"
    return Case("linear.weight_only", name, run, _result(form), large)


def _fp8(
    form: Form, block: tuple[int, int], activations: Activations, tokens: int, k: int, n: int, large: bool = False
) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        height, width = min(block[0], n), min(block[1], k) if block[1] == _WHOLE else block[1]
        values = (random(n, k) * 100).to(_FP8)
        scales = (torch.rand(-(-n // height), -(-k // width)) + 0.5) * k**-0.5 / 100
        x, bias = random(tokens, k).to(dtype), random(n).to(dtype)
        static = 0.02 if activations == "tensor" else None
        got = fn(Float8Weight(values.clone(), scales, (height, width), activations, static), bias, form)(x)
        row, column = torch.arange(n) // height, torch.arange(k) // width
        weight = values.double() * scales.double()[row[:, None], column[None, :]]
        return [got], [product(in_fp8(x, activations, static), weight, bias, form)]

    shape = "x".join("all" if part == _WHOLE else str(part) for part in block)
    return Case("linear.fp8", f"{shape} {activations} {form} {tokens}x{k}x{n}", run, _result(form), large)


def _coded(form: Form, block: tuple[int, int] | None, group: int, tokens: int, k: int, n: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        x, bias = random(tokens, k).to(dtype), random(n).to(dtype)
        stored, weight = _codes(min(group, k), k, n) if block is None else _floats(block, k, n)
        return [fn(stored, bias, form)(x)], [product(x.double(), weight, bias, form)]

    name = f"4 bits, {_size(group)}" if block is None else f"fp8 {_size(block[0])}x{_size(block[1])}"
    return Case("linear.coded", f"{name} {form} {tokens}x{k}x{n}", run, _result(form))


def _size(inputs: int) -> str:
    return "all" if inputs == _WHOLE else str(inputs)


def _codes(group: int, k: int, n: int) -> tuple[CodedWeight, Tensor]:
    """With a table that bf16 holds only times three halves."""
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    table = (torch.randperm(255)[:16] - 128).float() / 384
    scales = (torch.rand(n, -(-k // group)) + 0.5) * k**-0.5
    numbers = table.double()[codes.int()] * scales.double()[:, torch.arange(k) // group]
    return CodedWeight(codes, table, scales, group), numbers


def _floats(block: tuple[int, int], k: int, n: int) -> tuple[Float8Weight, Tensor]:
    """Of all numbers that there are, and with activations that are not rounded whatever the format says."""
    height, width = min(block[0], n), min(block[1], k) if block[1] == _WHOLE else block[1]
    codes = torch.randint(0, 127, (n, k), dtype=torch.uint8) | torch.randint(0, 2, (n, k), dtype=torch.uint8) << 7
    values = codes.view(_FP8)
    scales = (torch.rand(-(-n // height), -(-k // width)) + 0.5) * k**-0.5 / 100
    numbers = values.double() * scales.double()[torch.arange(n) // height][:, torch.arange(k) // width]
    return Float8Weight(values, scales, (height, width), "token"), numbers
