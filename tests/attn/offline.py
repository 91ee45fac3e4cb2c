"""Compiles the Triton attention kernels for a GPU that is not there, by calling the backend as a server would.

Names of cases are the arguments; without any, all are compiled.
"""

from __future__ import annotations

import shutil
import sys
import tempfile

import torch
from triton import knobs

from sgl.engine.attn.checks import CASES, LARGE_CASES, make_scene
from sgl.engine.attn.triton import TritonBackend
from sgl.engine.base.device import CpuDevice
from tests.kernels.offline import install


def main() -> None:
    knobs.cache.dir = tempfile.mkdtemp(prefix="triton-")
    compiled = install(90)
    chosen = [case for case in (*CASES, *LARGE_CASES) if len(sys.argv) == 1 or case.name in sys.argv]
    for case in chosen:
        before = len(compiled)
        for dtype in (torch.bfloat16, torch.float32) if len(sys.argv) == 1 else (torch.bfloat16,):
            make_scene(case, dtype, torch.device("cpu")).run(TritonBackend(CpuDevice()))
        print(f"{case.name}: {' '.join(compiled[before:])}", flush=True)
    shutil.rmtree(knobs.cache.dir)


if __name__ == "__main__":
    main()
