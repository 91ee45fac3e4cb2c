"""A stand-in for a GPU of which nothing is there: Triton compiles for it as it would, and launches do nothing.

Run as a program it calls every Triton implementation on the inputs of its cases, so that what is compiled, down to the
specialisation by alignment and shared memory, is what a server would compile.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import shutil
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from sgl.kernels.checks.parity import checks

SHARED_MEMORY = {80: 166_912, 90: 232_448}
"""The most bytes that one block of threads may have, by compute capability."""


class OfflineDriver:
    """What Triton asks of a driver between a call and a launch."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        properties = {"max_shared_mem": SHARED_MEMORY[capability]}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, binary, shared, device: (object(), 0, 0, 0, 1024),
        )

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: object, metadata: object) -> Any:
        return lambda *args: None


def install(capability: int, once: bool = False) -> list[str]:
    """Makes the stand-in Triton's driver; returns a list to which every newly compiled kernel's name is appended.

    Args:
        once: compile no second variant of a kernel that is on the list.
    """
    triton.runtime.driver.set_active(OfflineDriver(capability))
    compiled: list[str] = []
    prepare, launch = CompiledKernel._init_handles, JITFunction.run

    def counting(kernel: Any) -> None:
        if kernel.module is None:
            compiled.append(kernel.name)
        prepare(kernel)

    def run(kernel: Any, *args: Any, **options: Any) -> Any:
        return None if once and kernel.__name__ in compiled else launch(kernel, *args, **options)

    CompiledKernel._init_handles, JITFunction.run = counting, run
    return compiled


class Called(Exception):
    """An implementation has been called; there is no answer to look at."""


def probe(fn: Any) -> Any:
    """An implementation that ends its case once it has launched what it launches."""

    @functools.wraps(fn, updated=())
    def call(*args: Any) -> Any:
        result = fn(*args)
        if not callable(result):
            raise Called
        return probe(result)

    return call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--only", default="", help="part of the names of the checks")
    parser.add_argument("--all", action="store_true", help="every variant of every kernel, in real sizes too")
    options = parser.parse_args()
    knobs.cache.dir = tempfile.mkdtemp(prefix="triton-")
    compiled = install(options.capability, once=not options.all)
    found = checks("cuda", f"sm{options.capability}", (torch.bfloat16,), large=options.all)
    chosen = {
        check.name if options.all else (check.impl.op, check.impl.name): check
        for check in found
        if check.impl.name == "triton" and options.only in check.name
    }
    for check in chosen.values():
        compiled.clear()
        started = time.perf_counter()
        with contextlib.suppress(Called), torch.inference_mode():
            check.case.run(probe(check.impl.fn), check.dtype)
        names = " ".join(compiled) or "nothing new"
        print(f"{check.name}: {names}, {time.perf_counter() - started:.2f} s", flush=True)
    shutil.rmtree(knobs.cache.dir)


if __name__ == "__main__":
    main()
