"""Products of packed integers with inputs that are not rounded, on every instruction set that this processor has."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from sgl.kernels.cpu import native
from sgl.kernels.cpu.linear import linear_quantized, linear_weight_only
from sgl.kernels.ops.linear import QuantizedWeight
from tests.kernels.sums import check_sums

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

ROW = 1 << 20
Zeros = Literal["", "points", "offsets"]
Format = tuple[Literal[4, 8], int, Zeros, torch.dtype]
FORMATS: tuple[Format, ...] = (
    (8, ROW, "", torch.float32),
    (8, ROW, "points", torch.float32),
    (8, 16, "", torch.float32),
    (8, 20, "points", torch.bfloat16),
    (8, 32, "", torch.float16),
    (8, 32, "offsets", torch.float32),
    (8, 128, "points", torch.float32),
    (4, 16, "", torch.bfloat16),
    (4, 32, "points", torch.float32),
    (4, 32, "offsets", torch.float32),
    (4, 128, "", torch.bfloat16),
    (4, ROW, "points", torch.float32),
)
"""Bits, inputs that share a scale, what is stored beside it, and the type that holds the scales exactly."""

SHAPES = ((64, 128), (100, 6), (5, 2), (330, 150))
ROWS = (1, 2, 3, 5, 11, 16, 33, 70)


def weight_of(
    bits: Literal[4, 8], group: int, zeros: Zeros, scale: torch.dtype, rows: int, inner: int
) -> tuple[QuantizedWeight, Tensor]:
    """A random weight, and its numbers in float64."""
    group, most = min(group, inner), 1 << bits
    count = -(-inner // group)
    values = torch.randint(0, most, (rows, inner), dtype=torch.uint8)
    scales = (torch.randn(rows, count) * inner**-0.5 / most).to(scale).float()
    column = torch.arange(inner) // group
    if zeros == "offsets":
        offsets = torch.randn(rows, count) * inner**-0.5
        numbers = values.double() * scales[:, column].double() + offsets[:, column].double()
        return QuantizedWeight(values, scales, None, bits, group, weight_only=True, offsets=offsets), numbers
    points = torch.randint(0, most, (rows, count), dtype=torch.uint8) if zeros else None
    middle = torch.full((rows, count), most // 2) if points is None else points
    numbers = (values.double() - middle[:, column].double()) * scales[:, column].double()
    return QuantizedWeight(values, scales, points, bits, group, weight_only=True), numbers


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_sums_are_as_good_as_those_in_float32_and_the_same_for_any_number_of_rows(isa: str, format: Format) -> None:
    torch.manual_seed(0)
    for inner, columns in SHAPES:
        weight, numbers = weight_of(*format, columns, inner)
        bias = torch.randn(columns).bfloat16()
        check_sums(linear_weight_only(weight, bias, "float32"), numbers, bias, ROWS)


def test_small_inputs_beside_a_spike_are_not_lost(isa: str) -> None:
    """A kernel that rounds activations to int8 sees nothing of them."""
    torch.manual_seed(0)
    weight, numbers = weight_of(8, ROW, "", torch.float32, 40, 256)
    x = torch.randn(3, 256).bfloat16()
    x[:, 7] = 3000
    wanted = x.double() @ numbers.t()
    small = wanted - x[:, 7:8].double() * numbers[:, 7]
    error = (linear_weight_only(weight, None, "float32")(x) - wanted).abs().max()
    rounded = (linear_quantized(weight, None, "float32")(x) - wanted).abs().max()
    assert error < 1e-3 * small.abs().mean() < rounded


def test_what_is_no_number_stays_in_its_row(isa: str) -> None:
    torch.manual_seed(0)
    weight, _ = weight_of(8, 32, "", torch.float32, 24, 96)
    x = torch.randn(9, 96).bfloat16()
    x[2], x[4, 5], x[6, 40] = 0, torch.nan, torch.inf
    y = linear_weight_only(weight, None, "plain")(x)
    assert y[2].eq(0).all() and y[4].isnan().all() and y[6].isnan().all()
    assert y[[0, 1, 3, 5, 7, 8]].isfinite().all()
