"""How fast this machine reads memory right now: what decoding is measured against."""

from __future__ import annotations

import mmap
import time
from contextlib import suppress

PROBE_BYTES = 1 << 30
"""Large against any cache."""

MOVED = 0.10
"""A run during which the bandwidth moved by more than this says so."""


class BandwidthProbe:
    """Reads the same gigabyte again and again with as many threads as the engine has.

    It stands on huge pages, as the engine's weights do, and is searched for its maximum, which takes the least
    arithmetic of torch's reductions: a sum over small pages reads up to a quarter slower than the kernels.
    """

    def __init__(self, size_bytes: int | None = None) -> None:
        import torch

        self.size_bytes = size_bytes or PROBE_BYTES
        memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system without them has its bandwidth on small pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._data = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)

    def read(self) -> None:
        self._data.amax()

    def measure(self, repeats: int = 5) -> float:
        """Bytes per second of the fastest of a few reads; about a fifth of a second."""
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            self.read()
            best = min(best, time.perf_counter() - start)
        return self.size_bytes / best


def moved(before: float, after: float) -> bool:
    """Whether the machine changed between two measurements."""
    low, high = sorted((before, after))
    return high > low * (1 + MOVED)
