"""Launches of kernels that have been launched like this before: what Triton works out anew each time is kept.

Which variant of a kernel a call means hangs on dtypes, alignment and integers, and Triton derives it from all arguments
at every launch. Here the same is looked up under a key that tells more apart than Triton does. Where a Triton is not
one of those whose launches are known, or interprets, kernels are launched as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_KNOWN = ("3.6.", "3.7.")
"""Versions in which a compiled kernel is launched as below."""

_MOST = 1 << 10
"""Variants of a kernel that are kept; more come only of integers that change and had better be `do_not_specialize`."""

_INT32 = 1 << 31


@dataclass(frozen=True, slots=True)
class _Variant:
    """A compiled kernel as its launcher wants it."""

    run: Callable[..., None]
    function: int
    metadata: Any
    constants: tuple[Any, ...]


class Bound:
    """A kernel; ``bound[grid](*arguments, **constants)`` launches it as Triton would."""

    def __init__(self, kernel: JITFunction[Any]) -> None:
        self.kernel = kernel
        self._is_free = [param.do_not_specialize for param in kernel.params]
        self._variants: dict[tuple[Any, ...], _Variant] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        # torch.compile knows kernels of Triton, and nothing of what is kept here
        return self.kernel[grid] if torch.compiler.is_compiling() else partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        active = driver.active
        device = active.get_current_device()
        key = self._key(device, args, constants)
        variant = self._variants.get(key)
        if variant is None:
            self._bind(key, grid, args, constants)
            return
        x, y, z = (*grid, 1, 1)[:3]
        stream = active.get_current_stream(device)
        told = (None, None, None)  # no hooks: only Triton's own profiler has any
        variant.run(x, y, z, stream, variant.function, variant.metadata, *told, *args, *variant.constants)

    def _key(self, device: int, args: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
        key: list[Any] = [device, *constants.items()]
        for arg, is_free in zip(args, self._is_free, strict=False):
            if type(arg) is int:
                key.append(not -_INT32 <= arg < _INT32 if is_free else arg)
            elif isinstance(arg, torch.Tensor):
                key += (arg.dtype, arg.data_ptr() & 15)
            elif type(arg) is not float:
                key.append(arg)
        return tuple(key)

    def _bind(
        self, key: tuple[Any, ...], grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """Launches as Triton does, and keeps what it found."""
        compiled = self.kernel[grid](*args, **constants)
        names = self.kernel.arg_names[len(args) :]
        if isinstance(compiled, CompiledKernel) and all(name in constants for name in names):
            if len(self._variants) >= _MOST:
                self._variants.clear()
            values = tuple(constants[name] for name in names)
            self._variants[key] = _Variant(compiled.run, compiled.function, compiled.packed_metadata, values)


def bound(kernel: Any) -> Any:
    """Decorates a kernel that is launched from the host."""
    is_known = triton.__version__.startswith(_KNOWN) and isinstance(kernel, JITFunction)
    return Bound(kernel) if is_known else kernel
