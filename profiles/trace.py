"""A recorded profile as data, wherever it comes from: what ran when, on which thread or device; judges nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sgl.engine.base.errors import SglError

Kind = Literal["span", "op", "native", "launch", "device"]
"""A range that we named, an operation of torch, a stage of our native code, a call that starts work on a device, work
on a device."""

NO_ARGS: Mapping[str, Any] = MappingProxyType({})
MAX_BYTES = 4 << 30
"""Of a file that is read: it is held in memory several times over."""


@dataclass(slots=True)
class Event:
    """Something that took time.

    Args:
        track: the thread, or the stream of a device.
        begin_us: from any moment that all events of a trace share.
        correlation: the same for a launch and what it launched; 0 for none.
    """

    name: str
    kind: Kind
    track: str
    begin_us: float
    duration_us: float
    correlation: int = 0
    args: Mapping[str, Any] = field(default_factory=lambda: NO_ARGS)

    @property
    def end_us(self) -> float:
        return self.begin_us + self.duration_us


@dataclass(frozen=True)
class Trace:
    """A profile.

    Args:
        events: in any order.
        facts: what the engine said of itself: ``cost`` of the model, ``machine``, and the ``steps``.
    """

    path: str
    events: Sequence[Event]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Trace:
    """A trace of torch's profiler (JSON, perhaps compressed), or nsys's SQLite export.

    Raises:
        SglError: it cannot be read, or is neither.
    """
    from sgl.profiles import chrome, nsys

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise SglError(f"{path} cannot be read: {error.strerror}.", param="trace") from None
    if magic.startswith(b"SQLite format 3"):
        return nsys.read(path)
    if path.suffix == ".nsys-rep":
        fix = f"nsys export --type sqlite {path}"
        raise SglError(f"{path} is nsys's own format; make a database of it: `{fix}`.", param="trace")
    if size > MAX_BYTES:
        raise SglError(f"{path} has {size >> 20} MiB; a trace of fewer steps can be read.", param="trace")
    return chrome.read(path)
