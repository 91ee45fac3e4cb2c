"""The tests of the C++ kernels again, over a build that AddressSanitizer and UBSan watch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgl.kernels.cpu import native

ROOT = Path(__file__).parents[2]
SUITES = {  # what runs C++
    "kernels": (
        *("tests/kernels/test_parity.py", "tests/kernels/test_weight_only.py", "tests/kernels/test_sampling.py"),
        "tests/kernels/test_draw_on_cpu.py",
        "tests/kernels/test_machines.py",
    ),
    "attention": ("tests/attn/test_cpu.py", "tests/attn/test_rules.py", "tests/attn/test_bounds.py"),
    "engine": ("tests/engine/test_invariance.py",),
    "grammar": ("tests/grammar/test_native.py",),
}
REPORTS = ("ERROR: AddressSanitizer", "runtime error:", "AddressSanitizer:DEADLYSIGNAL")

# An output that is one element short of what the kernel writes.
FAULT = """
import torch
from sgl.kernels.cpu import native
weight, order = torch.ones(64, 2, dtype=torch.bfloat16), torch.arange(64)
packed = torch.empty(127, dtype=torch.bfloat16)
native.library().sgl_pack_bf16(weight.data_ptr(), order.data_ptr(), 64, 2, packed.data_ptr())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def runtime(name: str) -> str:
    """Path of one of the compiler's libraries; empty if it has none of that name."""
    found = subprocess.run([native.compiler() or "", f"-print-file-name={name}"], capture_output=True, text=True)
    path = found.stdout.strip()
    return path if Path(path).is_absolute() else ""


@pytest.fixture(scope="module")
def watched() -> dict[str, str]:
    """The environment of a process whose kernels are watched."""
    if native.compiler() is None:
        pytest.skip("no C++ compiler")
    # libstdc++ comes second: AddressSanitizer looks for its exceptions before Python loads anything that brings it.
    preload = [runtime("libasan.so"), runtime("libstdc++.so.6")]
    if not all(preload):
        pytest.skip(f"{native.compiler()} has no shared libasan")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps its own until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SGL_KERNEL_SANITIZE": "1",
    }


def run(watched: dict[str, str], *arguments: str) -> tuple[int, str]:
    """(exit code, everything that was printed)"""
    done = subprocess.run(
        ["nice", sys.executable, *arguments],
        cwd=ROOT,
        env=watched,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_fault_is_seen(watched: dict[str, str]) -> None:
    code, output = run(watched, "-c", FAULT)
    assert code != 0 and "heap-buffer-overflow" in output and "sgl_pack_bf16" in output, output


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_no_kernel_leaves_its_memory_or_does_what_is_undefined(watched: dict[str, str], suite: tuple[str, ...]) -> None:
    options = ("-q", "--capture=no", "-p", "no:cacheprovider", "-m", "not slow", "--timeout=1200")
    code, output = run(watched, "-m", "pytest", *options, *suite)
    assert not [line for line in output.splitlines() if any(report in line for report in REPORTS)], output[-4000:]
    assert code == 0 and " passed" in output, output[-4000:]
