"""Compiles the Triton attention kernels for a GPU that is not there, by calling the backend as a server would.

Names of cases are the arguments; without any, all are compiled. Says of every kernel what it takes of a
multiprocessor; shared memory that no block of threads can have ends the program, as it would end a launch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel

from sgl.engine.attn.checks import CASES, LARGE_CASES, make_scene
from sgl.engine.attn.triton import TritonBackend
from sgl.engine.base.device import CpuDevice
from tests.kernels.offline import install

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def usage(kernel: Any) -> str:
    """Registers of a thread, bytes that it spills to memory, and bytes of shared memory of a block."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.kernel)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found is not None, told
    registers, stack, local = map(int, found.groups())
    return f"{kernel.name} {registers} registers {stack + local} spilled {kernel.metadata.shared} shared"


def main() -> None:
    knobs.cache.dir = tempfile.mkdtemp(prefix="triton-")
    install(90)
    told: list[str] = []
    prepare = CompiledKernel._init_handles

    def telling(kernel: Any) -> None:
        if kernel.module is None:
            told.append(usage(kernel))
        prepare(kernel)

    CompiledKernel._init_handles = telling  # type: ignore[method-assign]
    for case in CASES + LARGE_CASES:
        if len(sys.argv) > 1 and case.name not in sys.argv:
            continue
        for dtype in (torch.bfloat16, torch.float32) if len(sys.argv) == 1 else (torch.bfloat16,):
            make_scene(case, dtype, torch.device("cpu")).run(TritonBackend(CpuDevice()))
            while told:
                print(f"{case.name}, {dtype}: {told.pop(0)}", flush=True)
    shutil.rmtree(knobs.cache.dir)


if __name__ == "__main__":
    main()
