"""A program that launches kernels as Triton does and as `sgl.kernels.triton.launch` does, and compares the two.

Nothing is computed: a stand-in for a GPU notes what would be launched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime.jit import JITFunction

from sgl.kernels.triton.launch import Bound
from sgl.kernels.triton.norm import _norm_kernel
from sgl.kernels.triton.quantize import _quantize_kernel
from tests.kernels.offline import OfflineDriver


class Noting(OfflineDriver):
    """Keeps what was launched: which compiled kernel, its grid, stream and arguments; not the profiler's hooks."""

    def __init__(self) -> None:
        super().__init__(90)
        self.launched: list[tuple[object, ...]] = []

    def launcher_cls(self, source: object, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: object, packed: object, *rest: Any) -> None:
            _, _, _, *args = rest  # what is told to hooks, and they
            self.launched.append((metadata.hash, x, y, z, stream, function, packed, *map(_told, args)))

        return launch


def _told(value: object) -> object:
    return (value.data_ptr(), value.dtype, value.shape) if isinstance(value, torch.Tensor) else value


def calls() -> Iterator[tuple[Bound, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
    """Calls that differ in all that tells variants apart, and some that do not."""
    for dtype in (torch.bfloat16, torch.float32):
        for rows, start, width in ((4, 0, 64), (5, 0, 64), (1, 0, 64), (4, 1, 64), (4, 0, 48), (4, 0, 33)):
            x, out = torch.zeros(rows * width + start, dtype=dtype)[start:], torch.zeros(rows, width, dtype=dtype)
            weight = torch.zeros(width, dtype=dtype)
            for warps in (1, 2):
                constants = {"ADD": False, "CENTRE": False, "ROWS": 1, "WIDTH": 64, "num_warps": warps}
                args = (x, x, weight, weight, out, rows, 1, width, width, 0, 1e-6)
                yield _norm_kernel, (rows,), args, constants
    x = torch.zeros(3, 64)
    for static in (1.0, 0.25):
        for is_static in (False, True):
            values, scales = torch.zeros(3, 64, dtype=torch.int8), torch.zeros(3, 2)
            constants = {"STATIC": is_static, "FP8": False, "GROUPS": 2, "GROUP": 32, "num_warps": 1}
            yield _quantize_kernel, (3, 1), (x, values, scales, 64, 32, 2, 64, static), constants


def main() -> None:
    knobs.cache.dir = tempfile.mkdtemp(prefix="triton-")
    driver = Noting()
    triton.runtime.driver.set_active(driver)
    derived = 0
    run = JITFunction.run

    def counted(kernel: Any, *args: Any, **options: Any) -> Any:
        nonlocal derived
        derived += 1
        return run(kernel, *args, **options)

    JITFunction.run = counted
    for kernel, grid, args, constants in calls():
        kernel[grid](*args, **constants)
        kernel.kernel[grid](*args, **constants)
        before = derived
        kernel[grid](*args, **constants)
        assert derived == before, "the second launch was not bound"
        first, plain, again = driver.launched[-3:]
        assert first == plain == again, (first, plain, again)
    print(f"{len(driver.launched)} launches of {len({launch[0] for launch in driver.launched})} kernels agree")
    shutil.rmtree(knobs.cache.dir)


if __name__ == "__main__":
    main()
