"""A strict reading of the Chrome trace event format, the one that Perfetto and chrome://tracing open.

After "Trace Event Format" by Google: which phases there are, what each must have, and that what a thread does nests.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METADATA = {
    "process_name": "name",
    "process_labels": "labels",
    "process_sort_index": "sort_index",
    "thread_name": "name",
    "thread_sort_index": "sort_index",
}
"""Metadata events by name, and the argument that each must have."""

SLACK_US = 0.02
"""Times are decimals of large numbers."""

Event = dict[str, Any]
Track = tuple[Any, Any]


def problems(path: Path) -> list[str]:
    """What of a trace is not as the format says; a viewer would leave it out or draw it wrongly."""
    content = path.read_bytes()
    data = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    found = [] if isinstance(data, dict) else ["the trace is no object"]
    if data.get("displayTimeUnit", "ms") not in ("ms", "ns"):
        found.append(f"displayTimeUnit is {data['displayTimeUnit']!r}")
    slices: dict[Track, list[Event]] = defaultdict(list)
    open_: dict[Track, list[str]] = defaultdict(list)
    flows: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    named: dict[str, set[Any]] = defaultdict(set)
    for number, event in enumerate(data["traceEvents"]):
        for trouble in _of_event(event, slices, open_, flows, named):
            found.append(f"event {number} ({event.get('name')!r}): {trouble}")
    found += [f"{track}: {names} never end" for track, names in open_.items() if names]
    for track, events in slices.items():
        found += _crossing(track, events)
        if isinstance(track[0], int) and track[0] not in named["process_name"]:  # a text is its own name
            found.append(f"process {track[0]} has no name")
    found += [f"flow {key} has no end" for key, phases in flows.items() if phases[-1] != "f"]
    return found


def _of_event(
    event: Mapping[str, Any],
    slices: dict[Track, list[Event]],
    open_: dict[Track, list[str]],
    flows: dict[tuple[Any, Any], list[str]],
    named: dict[str, set[Any]],
) -> list[str]:
    phase, name, args = event.get("ph"), event.get("name"), event.get("args", {})
    track = event.get("pid"), event.get("tid")
    if phase == "M":
        if name not in METADATA:
            return ["no metadata of the format"]
        named[name].add(track[0])
        return [] if METADATA[name] in args else [f"without args.{METADATA[name]}"]
    found = [f"{key} is {event.get(key)!r}" for key in ("pid", "tid") if not isinstance(event.get(key), int | str)]
    if not _is_time(event.get("ts")):
        found.append(f"ts is {event.get('ts')!r}")
    if not isinstance(args, dict):
        found.append("args is no object")
    match phase:
        case "X":
            if not _is_time(event.get("dur")) or event["dur"] < 0:
                found.append(f"dur is {event.get('dur')!r}")
            elif not isinstance(name, str) or not name:
                found.append("without a name")
            elif not found:
                slices[track].append(dict(event))
        case "B":
            open_[track].append(str(name))
        case "E":
            if not open_[track]:
                found.append("ends what was never begun")
            else:
                open_[track].pop()
        case "i" | "I":
            if event.get("s", "t") not in ("g", "p", "t"):
                found.append(f"scope is {event['s']!r}")
        case "C":
            if not all(isinstance(value, int | float) for value in args.values()):
                found.append("a counter that is no number")
        case "s" | "t" | "f":
            if "id" not in event:
                found.append("a flow without an id")
            flows[event.get("cat"), event.get("id")].append(phase)
        case _:
            found.append(f"no phase {phase!r}")
    return found


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _crossing(track: Track, events: list[Event]) -> list[str]:
    """Slices of a thread that begin within another and end after it."""
    found, around = [], []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"] + SLACK_US:
            around.pop()
        if around and event["ts"] + event["dur"] > around[-1]["ts"] + around[-1]["dur"] + SLACK_US:
            found.append(f"{track}: {event['name']!r} at {event['ts']} ends after {around[-1]['name']!r} around it")
        around.append(event)
    return found
