"""Names spans of work for profilers: torch's, and nsys by NVTX ranges; costs next to nothing without one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from sgl.engine.base import env

_NULL: AbstractContextManager[None] = nullcontext()


def _nvtx() -> Callable[[str], AbstractContextManager[object]] | None:
    """What makes an NVTX range, where `sgl profile nsys` asks for them and the package is there."""
    if not env.flag("SGL_NVTX") or importlib.util.find_spec("nvtx") is None:
        return None
    import nvtx

    ranges: Callable[[str], AbstractContextManager[object]] = nvtx.annotate
    return ranges


_NVTX = _nvtx()


def is_recording() -> bool:
    """Whether torch's profiler records at this moment. Never imports torch."""
    profiler = sys.modules.get("torch.autograd.profiler")
    return profiler is not None and bool(profiler._is_profiler_enabled)


def span(name: str) -> AbstractContextManager[object]:
    """A context that shows as ``name`` in the profile that is being recorded, if one is. Never imports torch."""
    if _NVTX is not None:
        return _NVTX(name)
    profiler = sys.modules.get("torch.autograd.profiler")
    if profiler is None or not profiler._is_profiler_enabled:
        return _NULL
    # torch's own, for code where `record_function` takes too long: 2 us in place of 10 and more
    recorded: AbstractContextManager[object] = sys.modules["torch"]._C._profiler._RecordFunctionFast(name)
    return recorded
