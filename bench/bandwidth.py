"""How fast this machine reads memory right now: what decoding is measured against."""

from __future__ import annotations

import time

PROBE_BYTES = 1 << 30
"""Large against any cache."""


class BandwidthProbe:
    """Reads the same gigabyte again and again with as many threads as the engine has."""

    def __init__(self) -> None:
        import torch

        self._data = torch.ones(PROBE_BYTES // 4, dtype=torch.float32)

    def measure(self, repeats: int = 5) -> float:
        """Bytes per second of the fastest of a few reads; about a fifth of a second."""
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            self._data.sum()
            best = min(best, time.perf_counter() - start)
        return PROBE_BYTES / best
