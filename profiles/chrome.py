"""Reads the traces of torch's profiler, which are in Chrome's format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sgl.engine.base.errors import SglError
from sgl.profiles.trace import MAX_BYTES, NO_ARGS, Event, Kind, Trace

_KINDS: dict[str, Kind] = {
    "user_annotation": "span",
    "layer": "span",
    "cpu_op": "op",
    "native": "native",
    "cuda_runtime": "launch",
    "cuda_driver": "launch",
    "kernel": "device",
    "gpu_memcpy": "device",
    "gpu_memset": "device",
}
"""Categories that count. Annotations of torch's that are none of ours do no harm."""


class _Raw(msgspec.Struct):
    ph: str
    name: str = ""
    cat: str = ""
    pid: int | str = 0
    tid: int | str = 0
    ts: float = 0.0
    dur: float = 0.0
    args: dict[str, Any] = {}


class _File(msgspec.Struct):
    traceEvents: list[_Raw]
    sgl: dict[str, Any] = {}


def read(path: Path) -> Trace:
    """
    Raises:
        SglError: it is no such trace.
    """
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                data = file.read(MAX_BYTES + 1)
        file_content = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, zlib.error, EOFError, OSError, ValueError) as error:
        raise SglError(f"{path} is no trace of torch's profiler: {error}.", param="trace") from None
    return Trace(str(path), list(_events(file_content.traceEvents)), file_content.sgl)


def _events(raw_events: list[_Raw]) -> Iterator[Event]:
    for raw in raw_events:
        kind = _KINDS.get(raw.cat)
        if kind is None or raw.ph != "X":
            continue
        if kind == "op" and "::" not in raw.name:
            kind = "span"  # torch writes down those of `engine.base.trace` like its own operations, which have a `::`
        correlation = raw.args.get("correlation", 0)
        yield Event(
            name=raw.name,
            kind=kind,
            track=f"{raw.pid}/{raw.tid}",
            begin_us=raw.ts,
            duration_us=raw.dur,
            correlation=correlation if isinstance(correlation, int) else 0,
            args=raw.args if kind in ("op", "native") and raw.args else NO_ARGS,
        )
