"""Every implementation of every op that runs on this machine, against float64."""

from __future__ import annotations

import pytest
import torch

from sgl.engine.base.device import detect_isa
from sgl.kernels.checks.cases import CASES
from sgl.kernels.checks.parity import Check, checks
from sgl.kernels.ops.linear import Float8Weight, StoredWeight
from sgl.kernels.ops.quantize import round_weight
from sgl.kernels.registry import REFERENCE, Impl, implementations
from sgl.quant.config import FORMATS

IMPLS = list(implementations())
CHECKS = list(checks("cpu", detect_isa()))


def named(impl: Impl) -> str:
    return f"{impl.op}-{impl.name}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_matches_float64(check: Check) -> None:
    assert check.run() <= 1


@pytest.mark.parametrize("op", sorted({impl.op for impl in IMPLS}))
def test_every_op_has_cases(op: str) -> None:
    assert any(case.op == op for case in CASES)


@pytest.mark.parametrize("impl", [i for i in IMPLS if i.op.startswith("linear") and i.name != REFERENCE], ids=named)
def test_a_row_of_a_packed_bf16_linear_does_not_depend_on_the_others(impl: Impl) -> None:
    if impl.why_not("cpu", detect_isa(), torch.bfloat16):
        pytest.skip(impl.why_not("cpu", detect_isa(), torch.bfloat16))
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*s, generator=generator).bfloat16() for s in ((96, 160), (40, 160)))
    weights: list[torch.Tensor | StoredWeight] = [weight]
    if impl.op == "linear.coded":
        weights = [Float8Weight(weight.to(torch.float8_e4m3fn), torch.ones(96, 1), (1, 160))]
    if impl.op in ("linear.quantized", "linear.weight_only"):
        weights = [round_weight(weight, format.bits, format.group or 160) for format in FORMATS.values()]
    for stored in weights:
        prepared = impl.fn(stored, None, "plain")
        together = prepared(x)
        for rows in (1, 2, 3, 8, 17):
            assert torch.equal(prepared(x[:rows]), together[:rows])
