"""How far every implementation of every op is from float64, on random inputs; judges nothing but shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sgl.kernels.checks.case import Case
from sgl.kernels.checks.cases import CASES
from sgl.kernels.registry import Impl, dtype_name, implementations

# Relative to the largest value of the answer: a few units in the last place of each dtype.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True)
class Check:
    """One case of one implementation in one dtype."""

    impl: Impl
    case: Case
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.impl.op}-{self.impl.name}-{self.case.name}-{dtype_name(self.dtype)}"

    @torch.inference_mode()
    def run(self) -> float:
        """The largest deviation from float64 in units of what is tolerated; infinite where NaN came out."""
        torch.manual_seed(self.seed + len(self.case.name))
        with torch.device(self.device):
            got, wanted = self.case.run(self.impl.fn, self.dtype)
        worst = 0.0
        for answer, truth in zip(got, wanted, strict=True):
            assert answer.dtype == (self.case.result or self.dtype) and answer.shape == truth.shape
            if truth.numel():
                error = float((answer.double() - truth).abs().max() / truth.abs().max())
                worst = max(worst, error / TOLERANCE[self.dtype]) if error == error else float("inf")
        return worst


def checks(
    device: str,
    isa: str,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    seed: int = 0,
    large: bool = False,
) -> Iterator[Check]:
    """What runs on ``device`` (``cpu`` or ``cuda``) with instruction set ``isa``; on request also in real sizes."""
    for impl in implementations(device):
        for case in CASES:
            for dtype in dtypes:
                if impl.op == case.op and case.large <= large and not impl.why_not(device, isa, dtype):
                    yield Check(impl, case, dtype, device, seed)
