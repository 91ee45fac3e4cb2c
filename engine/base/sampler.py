"""Samples which Python code the threads of this process run, and writes that down at the end; analyses nothing.

A thread's sample weighs as much processor time as the thread has used since the sample before, so that one that waits
weighs nothing. Time in native code counts for the Python function that called it. `sgl profile py` asks for it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from sgl.engine.base import env

RATE = 100
"""Samples per second."""

_MAX_DEPTH = 200
_MAX_STACKS = 100_000  # of a process; further ones are dropped


class Place(NamedTuple):
    """A function, and where it begins."""

    name: str
    file: str
    line: int


Stack = tuple[Place, ...]
"""Outermost first."""


class Sampler:
    """Runs on a thread of its own between `start` and `stop`."""

    def __init__(self, rate: int = RATE) -> None:
        self._interval_s = 1.0 / rate
        self._weights: dict[str, Counter[Stack]] = defaultdict(Counter)  # by thread: nanoseconds
        self._used_ns: dict[int, int] = {}
        self._clock = _processor_ns if Path("/proc/self/schedstat").exists() else _elapsed_ns
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> dict[str, Counter[Stack]]:
        """Nanoseconds by thread and stack."""
        self._stopping.set()
        self._thread.join()
        return self._weights

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        frames = sys._current_frames()
        for thread in threading.enumerate():
            frame = frames.get(thread.ident or 0)
            if frame is None or thread is self._thread or thread.native_id is None:
                continue
            before_ns = self._used_ns.get(thread.native_id)
            used_ns = self._clock(thread.native_id)
            if used_ns is None:  # it has ended meanwhile
                continue
            weight = used_ns - (used_ns if before_ns is None else before_ns)
            self._used_ns[thread.native_id] = used_ns
            stacks = self._weights[thread.name]
            if weight > 0 and sum(map(len, self._weights.values())) < _MAX_STACKS:
                stacks[_stack(frame)] += weight


def _stack(frame: FrameType | None) -> Stack:
    places: list[Place] = []
    while frame is not None and len(places) < _MAX_DEPTH:
        code = frame.f_code
        places.append(Place(code.co_qualname, code.co_filename, code.co_firstlineno))
        frame = frame.f_back
    return tuple(reversed(places))


def _processor_ns(native_id: int) -> int | None:
    """What a thread has used so far; None if there is no such thread."""
    try:
        return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _elapsed_ns(native_id: int) -> int:
    """Where the system does not say what threads use, all time counts."""
    return time.monotonic_ns()


@contextmanager
def sampling(role: str) -> Iterator[None]:
    """Samples this process within, if `sgl profile py` has asked for it.

    Args:
        role: of the process, for the names of the files.
    """
    directory = env.text("SGL_PROFILE_PY")
    if not directory:
        yield
        return
    sampler = Sampler()
    sampler.start()
    try:
        yield
    finally:
        weights = sampler.stop()
        with suppress(OSError):  # a profile that cannot be written must not break what it was made of
            _write(Path(directory) / f"{role}-{os.getpid()}", role, weights)


def _write(path: Path, role: str, weights: dict[str, Counter[Stack]]) -> None:
    """For speedscope.app, and as the collapsed stacks that flame graph tools read."""
    with path.with_suffix(".collapsed").open("w", encoding="utf-8") as file:
        for thread, stacks in weights.items():
            for stack, weight_ns in stacks.items():
                names = ";".join([role, thread, *(place.name.replace(";", ":") for place in stack)])
                file.write(f"{names} {weight_ns // 1000}\n")
    path.with_suffix(".speedscope.json").write_text(json.dumps(_speedscope(role, weights)), encoding="utf-8")


def _speedscope(role: str, weights: dict[str, Counter[Stack]]) -> dict[str, Any]:
    index: dict[Place, int] = {}
    profiles = []
    for thread, stacks in weights.items():
        samples = [[index.setdefault(place, len(index)) for place in stack] for stack in stacks]
        times_us = [weight_ns / 1000 for weight_ns in stacks.values()]
        common = {"type": "sampled", "unit": "microseconds", "startValue": 0, "endValue": sum(times_us)}
        profiles.append({**common, "name": f"{role}: {thread}", "samples": samples, "weights": times_us})
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [place._asdict() for place in index]},
        "profiles": profiles,
    }
