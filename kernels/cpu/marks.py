"""Times of the stages of the joined decoder, which is one native call to everybody else; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sgl.kernels.cpu import native

STAGES = (
    *("start", "rotation", "attention norm", "qkv", "rope and store"),
    *("attention", "out", "mlp norm", "up", "down"),
)
"""As in decoder.cpp, in order."""

MAX_MARKS = 1 << 21
"""Kept of one recording: ten thousand steps of a model with 24 layers."""

_MARK = np.dtype([("time_ns", "<i8"), ("stage", "<i4"), ("layer", "<i4")])


class StageTime(NamedTuple):
    """One stage of one layer in one step; times are of `time.monotonic_ns`."""

    name: str
    layer: int
    begin_ns: int
    end_ns: int


class Marks:
    """Has the native code note when its stages end; at most one at a time in a process."""

    def __init__(self) -> None:
        self._marks = np.zeros(0, _MARK)

    def start(self) -> None:
        self._marks = np.zeros(MAX_MARKS, _MARK)  # memory that is touched only as it fills
        native.library().sgl_record(self._marks.ctypes.data, MAX_MARKS)

    def stop(self) -> Iterator[StageTime]:
        """Ends the recording; the stages in order, as far as there was room for them."""
        count = native.library().sgl_record(None, 0)
        before_ns = 0
        for time_ns, stage, layer in self._marks[: min(count, MAX_MARKS)].tolist():
            if stage:
                yield StageTime(STAGES[stage], layer, before_ns, time_ns)
            before_ns = time_ns
