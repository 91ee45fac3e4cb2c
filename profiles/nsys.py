"""Reads what nsys recorded, from its SQLite export: CUDA's activities and our NVTX ranges."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from sgl.engine.base.errors import SglError
from sgl.profiles.trace import Event, Kind, Trace

_PUSH_POP = 59  # the NVTX event type of a range that begins and ends on one thread

_QUERIES: dict[str, tuple[Kind, str]] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": (
        "device",
        "SELECT s.value, t.deviceId || '/' || t.streamId, t.start, t.end, t.correlationId"
        " FROM CUPTI_ACTIVITY_KIND_KERNEL t LEFT JOIN StringIds s ON s.id = t.demangledName",
    ),
    "CUPTI_ACTIVITY_KIND_MEMCPY": (
        "device",
        "SELECT 'memcpy', t.deviceId || '/' || t.streamId, t.start, t.end, t.correlationId"
        " FROM CUPTI_ACTIVITY_KIND_MEMCPY t",
    ),
    "CUPTI_ACTIVITY_KIND_MEMSET": (
        "device",
        "SELECT 'memset', t.deviceId || '/' || t.streamId, t.start, t.end, t.correlationId"
        " FROM CUPTI_ACTIVITY_KIND_MEMSET t",
    ),
    "CUPTI_ACTIVITY_KIND_RUNTIME": (
        "launch",
        "SELECT s.value, t.globalTid, t.start, t.end, t.correlationId"
        " FROM CUPTI_ACTIVITY_KIND_RUNTIME t LEFT JOIN StringIds s ON s.id = t.nameId",
    ),
    "NVTX_EVENTS": (
        "span",
        "SELECT coalesce(t.text, s.value), t.globalTid, t.start, t.end, 0"
        " FROM NVTX_EVENTS t LEFT JOIN StringIds s ON s.id = t.textId"
        f" WHERE t.eventType = {_PUSH_POP} AND t.end IS NOT NULL",
    ),
}
"""By table, of which an export has those that something was recorded in."""


def read(path: Path) -> Trace:
    """
    Raises:
        SglError: it is no export of nsys.
    """
    try:
        # read-only, as it is: an empty file is not to be made where there is none
        with sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True) as database:
            return Trace(str(path), list(_events(database)))
    except sqlite3.Error as error:
        raise SglError(f"{path} is no SQLite export of nsys: {error}.", param="trace") from None


def _events(database: sqlite3.Connection) -> Iterator[Event]:
    present = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not present & set(_QUERIES):
        raise sqlite3.DatabaseError("it has none of nsys's tables")
    for table, (kind, query) in _QUERIES.items():
        if table not in present:
            continue
        for name, track, start_ns, end_ns, correlation in database.execute(query):
            yield Event(
                name=str(name or "?"),
                kind=kind,
                track=str(track),
                begin_us=start_ns / 1e3,
                duration_us=(end_ns - start_ns) / 1e3,
                correlation=int(correlation or 0),
            )
