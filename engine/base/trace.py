"""Names spans of work for profilers: torch's, and through ``emit_nvtx`` nsys; costs next to nothing without one."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

_NULL: AbstractContextManager[None] = nullcontext()


def span(name: str) -> AbstractContextManager[object]:
    """A context that shows as ``name`` in the profile that is being recorded, if one is. Never imports torch."""
    profiler = sys.modules.get("torch.autograd.profiler")
    if profiler is None or not profiler._is_profiler_enabled:
        return _NULL
    recorded: AbstractContextManager[object] = profiler.record_function(name)
    return recorded
