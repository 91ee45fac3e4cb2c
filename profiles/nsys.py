"""Reads what nsys recorded, from its SQLite export: CUDA's activities and our NVTX ranges."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from sgl.engine.base.errors import SglError
from sgl.profiles.trace import Event, Kind, Trace

_PUSH_POP = 59  # the NVTX event type of a range that begins and ends on one thread

_DEVICE = "t.deviceId || '/' || t.streamId"
_GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
_COPIES = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}
"""Kinds of copies by CUPTI's numbers."""

_TABLES: dict[str, tuple[Kind, str, str, str]] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": (
        "device",
        "s.value",
        _DEVICE,
        "CUPTI_ACTIVITY_KIND_KERNEL t LEFT JOIN StringIds s ON s.id = t.demangledName",
    ),
    _GRAPHS: ("device", "'graph ' || t.graphId", _DEVICE, f"{_GRAPHS} t"),
    "CUPTI_ACTIVITY_KIND_MEMCPY": ("device", "t.copyKind", _DEVICE, "CUPTI_ACTIVITY_KIND_MEMCPY t"),
    "CUPTI_ACTIVITY_KIND_MEMSET": ("device", "'memset'", _DEVICE, "CUPTI_ACTIVITY_KIND_MEMSET t"),
    "CUPTI_ACTIVITY_KIND_RUNTIME": (
        "launch",
        "s.value",
        "t.globalTid",
        "CUPTI_ACTIVITY_KIND_RUNTIME t LEFT JOIN StringIds s ON s.id = t.nameId",
    ),
    "NVTX_EVENTS": (
        "span",
        "coalesce(t.text, s.value)",
        "t.globalTid",
        f"NVTX_EVENTS t LEFT JOIN StringIds s ON s.id = t.textId WHERE t.eventType = {_PUSH_POP} AND t.end IS NOT NULL",
    ),
}
"""By table: kind, name, track and where they are from. An export has the tables in which something was recorded."""


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
    if not present & set(_TABLES):
        raise sqlite3.DatabaseError("it has none of nsys's tables")
    columns = {table: _columns(database, table) for table in _TABLES if table in present}
    tells_process = all("globalPid" in names for table, names in columns.items() if _TABLES[table][0] == "device")
    for table, names in columns.items():
        kind, name, track, source = _TABLES[table]
        query = f"SELECT {name}, {track}, t.start, t.end, {_correlation(names, tells_process)} FROM {source}"
        for found, place, start_ns, end_ns, correlation in database.execute(query):
            yield Event(
                name=_name(found),
                kind=kind,
                track=str(place),
                begin_us=start_ns / 1e3,
                duration_us=(end_ns - start_ns) / 1e3,
                correlation=int(correlation or 0),
            )


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")}


def _correlation(columns: set[str], tells_process: bool) -> str:
    """What joins a launch and what it launched. Every process counts from one on; bits 24 to 47 of an id name it."""
    if "correlationId" not in columns:
        return "0"
    thread = "globalPid" if "globalPid" in columns else "globalTid"
    process = f"(((t.{thread} >> 24) & 0xFFFFFF) << 32)" if tells_process else "0"
    return f"CASE WHEN t.correlationId = 0 THEN 0 ELSE t.correlationId + {process} END"


def _name(found: str | int | None) -> str:
    if isinstance(found, int):
        return f"memcpy {_COPIES.get(found, '')}".rstrip()
    return found or "?"
