"""Weights that are rounded some rows at a time come out as if they were rounded whole."""

from __future__ import annotations

import pytest
import torch

from sgl.quant import slices
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.int8 import Int8
from sgl.quant.formats.mxfp4 import MXFP4
from sgl.quant.formats.nvfp4 import NVFP4
from sgl.quant.formats.packed import Packed
from sgl.quant.recipes.report import measure
from sgl.quant.recipes.rounding import error_of
from sgl.quant.scheme import Encoded, WritableScheme

SCHEMES: tuple[WritableScheme, ...] = (
    Float8("channel"),
    Float8("block", "block"),
    Float8("tensor"),
    Int8(),
    Int8(64),
    Packed(4, 32),
    Packed(4, 128, symmetric=False),
    Packed(8, None),
    NVFP4(),
    MXFP4(),
)


@pytest.mark.parametrize("rows", [64, 200, 520])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.format} {scheme.label}")
def test_slices_change_nothing(scheme: WritableScheme, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = (torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows)) * 0.02).bfloat16()
    whole = scheme.encode(weight)
    exact = Encoded("m", scheme, whole, (rows, 256)).dequantize()
    monkeypatch.setattr(slices, "_NUMBERS", 1)  # 128 rows at a time
    assert len(slices.slices(rows, 256)) == -(-rows // 128)
    parts = scheme.encode(weight)
    assert whole.keys() == parts.keys()
    for suffix, tensor in whole.items():
        other = parts[suffix]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape and other.is_contiguous()
        assert torch.equal(other.view(torch.uint8), tensor.view(torch.uint8))
    found = error_of("m", scheme, weight, parts)
    wanted = measure("m", scheme.label, weight, exact, sum(tensor.nbytes for tensor in whole.values()))
    assert (found.module, found.before, found.after) == (wanted.module, wanted.before, wanted.after)
    assert found.error == pytest.approx(wanted.error, rel=1e-9)
    assert found.signal == pytest.approx(wanted.signal, rel=1e-9)
