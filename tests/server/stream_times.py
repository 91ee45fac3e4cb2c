"""Streams answers until its standard input ends, then prints when their tokens came: a process of its own.

For every two tokens that followed each other: when, and how long the machine below had taken processors away meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import httpx

BODY = {"model": "x", "prompt": "Count: ", "stream": True, "max_tokens": 1900, "temperature": 0, "ignore_eos": True}
LONG_S = 0.005
"""Only where a token took longer it is asked who had the processors: that takes time, too."""


def stolen_s() -> float:
    """So far, by all processors together."""
    with Path("/proc/stat").open() as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


class Times:
    """The gaps of all answers."""

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float, float]] = []
        self._last_s, self._stolen_s = 0.0, stolen_s()

    def begin(self) -> None:
        """Another answer: what was between the two is nobody's gap."""
        self._last_s, self._stolen_s = 0.0, stolen_s()

    def token(self) -> None:
        now_s, taken_s = time.perf_counter(), 0.0
        if self._last_s and now_s - self._last_s > LONG_S:
            taken_s, self._stolen_s = stolen_s() - self._stolen_s, stolen_s()
        if self._last_s:
            self.gaps.append((self._last_s, now_s, min(taken_s, now_s - self._last_s)))
        self._last_s = now_s


def main() -> None:
    url, is_over, times = sys.argv[1], threading.Event(), Times()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    with httpx.Client(timeout=60) as client:
        while not is_over.is_set():
            times.begin()
            with client.stream("POST", f"{url}/v1/completions", json=BODY) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        times.token()
                    if is_over.is_set():
                        break
    print(json.dumps(times.gaps))


if __name__ == "__main__":
    main()
