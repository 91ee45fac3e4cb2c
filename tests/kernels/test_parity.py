"""Every implementation of every op that runs on this machine, against float64."""

from __future__ import annotations

import pytest
import torch

from sgl.engine.base.device import detect_isa
from sgl.kernels.ops.quantize import round_weight
from sgl.kernels.registry import REFERENCE, Impl, dtype_name, implementations
from sgl.quant.config import FORMATS
from tests.kernels.cases import CASES, Case

# Relative to the largest value of the answer: a few units in the last place of each dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}

IMPLS = list(implementations())
RUNS = [
    pytest.param(impl, case, dtype, id=f"{impl.op}-{impl.name}-{case.name}-{dtype_name(dtype)}")
    for impl in IMPLS
    for case in CASES
    for dtype in TOLERANCE
    if impl.op == case.op and not impl.why_not("cpu", detect_isa(), dtype)
]


def named(impl: Impl) -> str:
    return f"{impl.op}-{impl.name}"


@pytest.mark.parametrize(("impl", "case", "dtype"), RUNS)
def test_matches_float64(impl: Impl, case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(len(case.name))
    with torch.inference_mode():
        got, wanted = case.run(impl.fn, dtype)
    for answer, truth in zip(got, wanted, strict=True):
        assert answer.dtype == (case.result or dtype) and answer.shape == truth.shape
        if truth.numel():
            error = (answer.double() - truth).abs().max() / truth.abs().max()
            assert error <= TOLERANCE[dtype], f"{float(error):.2e}"


@pytest.mark.parametrize("op", sorted({impl.op for impl in IMPLS}))
def test_every_op_has_cases(op: str) -> None:
    assert any(case.op == op for case in CASES)


@pytest.mark.parametrize("impl", [i for i in IMPLS if i.op.startswith("linear") and i.name != REFERENCE], ids=named)
def test_a_row_of_a_packed_bf16_linear_does_not_depend_on_the_others(impl: Impl) -> None:
    if impl.why_not("cpu", detect_isa(), torch.bfloat16):
        pytest.skip(impl.why_not("cpu", detect_isa(), torch.bfloat16))
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*s, generator=generator).bfloat16() for s in ((96, 160), (40, 160)))
    weights = [weight]
    if impl.op == "linear.quantized":
        weights = [round_weight(weight, format.bits, format.group or 160) for format in FORMATS.values()]
    for stored in weights:
        prepared = impl.fn(stored, None, "plain")
        together = prepared(x)
        for rows in (1, 2, 3, 8, 17):
            assert torch.equal(prepared(x[:rows]), together[:rows])
