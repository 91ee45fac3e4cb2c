"""Products of fp8 and of codes of four bits, read out as they are multiplied, on every instruction set that is here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sgl.kernels.cpu import native
from sgl.kernels.cpu.linear import NativeLinear, linear_coded
from sgl.kernels.ops.linear import CodedWeight, Float8Weight, arranged
from tests.kernels.sums import check_sums

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

ROW = 1 << 20
SHAPES = ((64, 128), (100, 8), (5, 288), (330, 160))  # outputs and inputs
LONG_SHAPES = ((70, 4904), (32, 6144))  # inputs of several parts that are read out, the last one shorter
ROWS = (1, 2, 3, 5, 11, 16, 17, 33, 70)
MANY_ROWS = (1, 16, 17, 97, 200)  # more than pass over a panel at a time
NUMBERS = torch.arange(256, dtype=torch.uint8)[torch.arange(256) % 128 != 127].view(torch.float8_e4m3fn)
"""All of e4m3 but NaN."""


def float8(block: tuple[int, int], rows: int, inner: int) -> tuple[Float8Weight, Tensor]:
    """A random weight, and its numbers in float64."""
    high, wide = min(block[0], rows), min(block[1], inner)
    values = NUMBERS.view(torch.uint8)[torch.randint(0, len(NUMBERS), (rows, inner))].view(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // high), -(-inner // wide)) * inner**-0.5
    numbers = values.double() * scales.double()[torch.arange(rows) // high][:, torch.arange(inner) // wide]
    return Float8Weight(values, scales, (high, wide), "token"), numbers


def code4(group: int, rows: int, inner: int) -> tuple[CodedWeight, Tensor]:
    """The same of sixteen numbers that bf16 holds only when they are multiplied with three."""
    group = min(group, inner)
    codes, table = torch.randint(0, 16, (rows, inner), dtype=torch.uint8), torch.arange(-7, 9).float() / 12
    scales = torch.rand(rows, -(-inner // group)) * inner**-0.5
    numbers = (torch.arange(-7, 9).double() / 12)[codes.int()] * scales.double()[:, torch.arange(inner) // group]
    return CodedWeight(codes, table, scales, group), numbers


FORMATS = {
    **{f"fp8 {high}x{wide}": (float8, (high, wide)) for high, wide in ((1, ROW), (ROW, ROW), (128, 128), (64, 32))},
    **{f"4 bits, {group}": (code4, group) for group in (32, 64, ROW)},
}


@pytest.mark.parametrize(("shapes", "rows"), [(SHAPES, ROWS), (LONG_SHAPES, MANY_ROWS)], ids=["short", "long"])
@pytest.mark.parametrize("name", FORMATS)
def test_sums_are_as_good_as_those_in_float32_and_the_same_for_any_number_of_rows(
    isa: str, name: str, shapes: tuple[tuple[int, int], ...], rows: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    make, size = FORMATS[name]
    for columns, inner in shapes:
        weight, numbers = make(size, columns, inner)
        bias = torch.randn(columns).bfloat16()
        prepared = linear_coded(weight, bias, "float32")
        assert isinstance(prepared, NativeLinear) and prepared.format == ("float8" if make is float8 else "code4")
        check_sums(prepared, numbers, bias, rows)


def test_every_number_is_read_out_exactly(isa: str) -> None:
    """Products with one, among zeros."""
    weight = NUMBERS.view(torch.uint8).repeat(8, 1)[:, :252].contiguous().view(torch.float8_e4m3fn)
    scales = torch.tensor([2.0**-k for k in range(8)]).view(8, 1)
    got = linear_coded(Float8Weight(weight, scales, (1, 252)), None, "float32")(torch.eye(252).bfloat16())
    assert torch.equal(got, weight.float().t() * scales.t())
    table = (torch.randperm(255)[:16] - 128).float()
    codes = torch.arange(16, dtype=torch.uint8).repeat(8, 2)
    got = linear_coded(CodedWeight(codes, table, scales, 32), None, "float32")(torch.eye(32).bfloat16())
    assert torch.equal(got, table.repeat(2)[:, None] * scales.t())


def test_what_is_no_number_stays_in_its_row(isa: str) -> None:
    torch.manual_seed(0)
    for weight in (float8((1, ROW), 24, 96)[0], code4(32, 24, 96)[0]):
        x = torch.randn(9, 96).bfloat16()
        x[2], x[4, 5], x[6, 40] = 0, torch.nan, torch.inf
        y = linear_coded(weight, None, "plain")(x)
        assert y[2].eq(0).all() and y[4].isnan().all() and not y[6].isfinite().any()
        assert y[[0, 1, 3, 5, 7, 8]].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "size", "inner", "fits"),
    [
        ("fp8", (1, ROW), 100, True),
        ("fp8", (1, ROW), 98, False),
        ("fp8", (64, 96), 200, True),
        ("fp8", (64, 48), 144, False),
        ("fp8", (64, 48), 48, True),
        ("4 bits", ROW, 200, True),
        ("4 bits", ROW, 100, False),
        ("4 bits", 32, 200, True),
        ("4 bits", 16, 64, False),
    ],
    ids=str,
)
def test_what_fits_no_line_or_tile_says_so(kind: str, size: Any, inner: int, fits: bool) -> None:
    weight, _ = (float8 if kind == "fp8" else code4)(size, 70, inner)
    assert weight.fits_coded_products is fits


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_move_keep_their_numbers_and_their_format(name: str) -> None:
    torch.manual_seed(0)
    make, size = FORMATS[name]
    weight, _ = make(size, 330, 160)
    order = torch.randperm(330)
    moved = arranged(weight, lambda rows: rows[order])
    assert type(moved) is type(weight) and moved.fits_coded_products
    assert torch.equal(moved.dequantize(), weight.dequantize()[order])
