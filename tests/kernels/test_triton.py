"""The Triton kernels on CPU tensors, under Triton's interpreter, against float64; and compiled without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from zlib import crc32

import pytest
import torch

from sgl.kernels.checks.parity import Check, checks

pytest.importorskip("triton")

CHECKS = [replace(check, device="cpu") for check in checks("cuda", "sm90") if check.impl.name == "triton"]
MANY = ("linear.quantized", "linear.weight_only", "linear.fp8", "moe.experts")
"""Ops with cases for every format: the interpreter takes its time, so the default run has a part of them."""


def spread(check: Check) -> object:
    is_part = check.impl.op not in MANY or crc32(check.name.encode()) % 8 == 0
    return pytest.param(check, id=check.name, marks=() if is_part else pytest.mark.slow)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here")
@pytest.mark.parametrize("check", [spread(check) for check in CHECKS])
def test_matches_float64(check: Check) -> None:
    """The interpreter cuts numbers off where they become bfloat16, which makes twice the error of rounding."""
    assert check.run() <= (2 if check.dtype is torch.bfloat16 else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("check", [pytest.param(c, id=c.name) for c in checks("cuda", "sm90", large=True)])
def test_matches_float64_on_a_gpu(check: Check) -> None:
    major, minor = torch.cuda.get_device_capability()
    reason = check.impl.why_not("cuda", f"sm{major}{minor}", check.dtype)
    if reason:
        pytest.skip(reason)
    assert check.run() <= 1


def compiled(*arguments: str, program: str = "offline") -> str:
    """What a program here says in a process of its own: there Triton must not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{program}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_implementation_compiles_for_sm90() -> None:
    said = compiled()
    assert all(f"{check.impl.op}-triton-" in said for check in CHECKS)


def test_bound_launches_are_those_that_triton_would_make() -> None:
    assert compiled(program="launches") == "84 launches of 14 kernels agree\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_case_compiles(capability: str) -> None:
    compiled("--all", "--capability", capability)
