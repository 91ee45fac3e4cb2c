"""How much of this process's cores other programs take: what was measured beside them says little. Measures nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from sgl.bench.contamination import ContaminatedError

MOST = 0.1
"""Of the cores' time. A desktop at rest and the kernel's own threads stay far below."""


@dataclass(frozen=True)
class Usage:
    """Processor time up to a moment, in seconds: of everybody, and of this process with its ended children."""

    all_s: float
    own_s: float
    now_s: float
    cores: int

    @staticmethod
    def now(root: Path = Path("/")) -> Usage:
        """Of the cores that this process may use; nothing where the system does not tell."""
        allowed = os.sched_getaffinity(0)
        times = os.times()
        own_s = times.user + times.system + times.children_user + times.children_system
        return Usage(_busy_s(root, allowed), own_s, time.monotonic(), len(allowed))

    def share(self, later: Usage) -> float:
        """What others took meanwhile, of all the time there was."""
        all_s, own_s = later.all_s - self.all_s, later.own_s - self.own_s
        return max(0.0, all_s - own_s) / max((later.now_s - self.now_s) * self.cores, 1e-9)

    def check(self, later: Usage) -> None:
        """
        Raises:
            ContaminatedError: others took more than `MOST`.
        """
        share = self.share(later)
        if share > MOST:
            raise ContaminatedError(
                f"Other programs took {share:.0%} of the processor time; nothing is reported. Run it again on a quiet "
                "machine."
            )


def _busy_s(root: Path, cpus: set[int]) -> float:
    """Without waiting; what the machine below took away counts."""
    try:
        lines = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
    except OSError:
        return 0.0
    names = {f"cpu{number}" for number in cpus}
    # user nice system idle iowait irq softirq steal
    ticks = sum(int(f) for line in lines if line and line[0] in names for f in (*line[1:4], *line[6:9]))
    return ticks / os.sysconf("SC_CLK_TCK")
