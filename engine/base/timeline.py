"""When the phases of a start ended, on the clock that all processes of a machine share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


class Timeline:
    """Phases one after the other, so that their lengths add up to the whole.

    Args:
        start_s: when the first phase began, on `time.monotonic`'s clock; now if None.
    """

    def __init__(self, start_s: float | None = None) -> None:
        self.start_s = time.monotonic() if start_s is None else start_s
        self.marks: list[tuple[str, float]] = []

    def mark(self, phase: str, at_s: float | None = None) -> None:
        """Ends a phase, now or when another process says."""
        self.marks.append((phase, time.monotonic() if at_s is None else at_s))

    def extend(self, marks: Iterable[tuple[str, float]]) -> None:
        """Adds phases that another process went through meanwhile."""
        for phase, at_s in marks:
            self.mark(phase, at_s)

    @property
    def total_s(self) -> float:
        return self.marks[-1][1] - self.start_s if self.marks else 0.0

    def phases(self) -> dict[str, float]:
        """Seconds by phase, in order."""
        ends = [self.start_s, *(at_s for _, at_s in self.marks)]
        return {phase: end - begin for (phase, end), begin in zip(self.marks, ends, strict=False)}

    def __str__(self) -> str:
        return f"{self.total_s:.2f} s: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.phases().items())


def process_start_s() -> float:
    """When this process was started, on `time.monotonic`'s clock, to a hundredth of a second; now if nobody knows."""
    now_s = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now_s
    return now_s - max(age_s, 0.0)
