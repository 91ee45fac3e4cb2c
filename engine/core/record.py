"""Recorded steps: what was planned and what came of it, as a file that replays without a scheduler.

A record is a sequence of frames, each a four-byte little-endian length and a msgpack-encoded `RecordedStep`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.types import Executor, KnownMasks, RowOutput, StepPlan

logger = logging.getLogger(__name__)


class RecordedStep(msgspec.Struct, frozen=True):
    """One executed step.

    ``masks`` and ``forced`` are, by row index, what grammars had to say: masks that the sampled tokens hung on, and
    tokens beside which none may come.
    """

    plan: StepPlan
    masks: dict[int, bytes]
    outputs: list[RowOutput]
    forced: dict[int, int] = {}


class Recorder(Protocol):
    """``keeps_masks`` says whether masks are to be found in steps whose tokens hang on them."""

    @property
    def keeps_masks(self) -> bool: ...

    def write(self, step: RecordedStep) -> None: ...

    def close(self) -> None: ...


class NullRecorder:
    """Records nothing."""

    keeps_masks = False

    def write(self, step: RecordedStep) -> None:
        pass

    def close(self) -> None:
        pass


class FileRecorder:
    """Appends steps to a file; a record cut off by a crash is readable up to its last whole step.

    Raises:
        ConfigError: the file cannot be written. A disk that fills up later ends the record, not the engine.
    """

    keeps_masks = True

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"--record-plans {path}: {error.strerror}.", param="--record-plans") from None
        self._encoder = msgspec.msgpack.Encoder()
        self._failed = False

    def write(self, step: RecordedStep) -> None:
        frame = self._encoder.encode(step)
        if self._failed:
            return
        try:
            self._file.write(len(frame).to_bytes(4, "little") + frame)
        except OSError as error:
            self._failed = True
            logger.error("recording stopped: %s", error)

    def close(self) -> None:
        self._file.close()


def read_steps(path: Path) -> Iterator[RecordedStep]:
    """The steps of a record, in order.

    Raises:
        SglError: a frame is not a recorded step.
    """
    decoder = msgspec.msgpack.Decoder(RecordedStep)
    with path.open("rb") as file:
        while len(head := file.read(4)) == 4:
            size = int.from_bytes(head, "little")
            frame = file.read(size)
            if len(frame) < size:
                return
            try:
                yield decoder.decode(frame)
            except msgspec.MsgspecError as error:
                raise SglError(f"{path} is not a step record: {error}", param="record") from error


def replay(steps: Iterator[RecordedStep], executor: Executor) -> Iterator[tuple[RecordedStep, list[RowOutput]]]:
    """Executes recorded plans again and yields each step with its new outputs, for comparison."""
    for step in steps:
        executor.forward(step.plan)
        yield step, executor.sample(step.plan, KnownMasks(step.masks, step.forced)).wait()
