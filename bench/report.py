"""What a set of results says, as tables and series of points; draws nothing and prints nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sgl.bench.details import Request, requests_of
from sgl.bench.results import Result, groups
from sgl.bench.svg import COLOURS, Bar, Series, number

MOST_POINTS = 300
"""Of a curve: more are not seen."""

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "one-batch": {
        "prefill_throughput": "prefill tok/s",
        "median_decode_throughput": "decode tok/s",
        "median_decode_latency": "s per step",
        "prefill_share_of_limit": "prefill of limit",
        "decode_share_of_limit": "decode of limit",
    },
    "offline": {
        "request_throughput": "req/s",
        "input_throughput": "input tok/s",
        "output_throughput": "output tok/s",
        "share_of_limit": "of limit",
    },
    "serving": {
        "request_throughput": "req/s",
        "output_throughput": "output tok/s",
        "median_ttft_ms": "median TTFT ms",
        "p99_ttft_ms": "p99 TTFT ms",
        "median_itl_ms": "median ITL ms",
        "p99_itl_ms": "p99 ITL ms",
        "goodput": "goodput req/s",
    },
}
"""Figures of a benchmark's table, in order, with their titles; other benchmarks show all that they have."""

SHARES = {
    "prefill_share_of_limit": "prefill",
    "decode_share_of_limit": "decode",
    "share_of_limit": "whole run",
    "decode_share_of_bandwidth": "decode, of bandwidth",
    "share_of_bandwidth": "decode, of bandwidth",
}
"""Parts of a limit that a result line may have."""


@dataclass(frozen=True)
class Row:
    """Results of one engine on one work: medians as text, ``-`` where there is none."""

    engine: str
    work: str
    repeats: int
    cells: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of one benchmark."""

    kind: str
    columns: Sequence[str]
    rows: Sequence[Row]


def tables(results: Sequence[Result]) -> list[Table]:
    """One table for each benchmark, in the order of their first results."""
    made = []
    for kind in dict.fromkeys(result.kind for result in results):
        own = [result for result in results if result.kind == kind]
        present = dict.fromkeys(name for result in own for name in result.figures)
        named = COLUMNS.get(kind) or {name: name for name in present}
        columns = {name: title for name, title in named.items() if name in present}
        rows = [
            Row(engine, work, len(group), [cell(group, name) for name in columns])
            for (_, work, engine), group in groups(own)
        ]
        made.append(Table(kind, list(columns.values()), rows))
    return made


def cell(group: Sequence[Result], name: str) -> str:
    """The median, and how far from it the farthest of several is."""
    values = [result.figures[name] for result in group if name in result.figures]
    if not values:
        return "-"
    middle = statistics.median(values)
    if "share" in name:
        return f"{middle:.0%}"
    spread = max(abs(value - middle) for value in values) / abs(middle) if middle else 0.0
    return number(middle) + (f" ±{spread:.0%}" if len(values) > 1 else "")


def shares(results: Sequence[Result]) -> list[Bar]:
    """How near every engine came to the limit, by work and phase."""
    found = []
    for (_, work, engine), group in groups(results):
        for colour, (name, phase) in enumerate(SHARES.items()):
            values = [value for result in group if isinstance(value := result.raw.get(name), int | float)]
            if values:
                bound = group[0].raw.get(name.removesuffix("share_of_limit") + "bound_by")
                said = f"{phase} {statistics.median(values):.0%}" + (f", bound by {bound}" if bound else "")
                found.append(Bar(f"{engine}: {work}", statistics.median(values), said, min(colour, 3)))
    return found


LATENCIES: Mapping[str, tuple[str, Callable[[Request], Sequence[float]]]] = {
    "Time to first token": ("ms", lambda request: [request.ttft_s]),
    "Time between tokens": ("ms", lambda request: request.itls_s),
    "Whole request": ("s", lambda request: [request.e2e_s]),
}
"""Latencies by title: their unit, and what a request contributes in seconds."""


def runs_with_details(results: Sequence[Result]) -> list[tuple[str, list[Request]]]:
    """Those whose single requests were recorded, by a name of their own, at most as many as there are colours."""
    found: dict[str, list[Request]] = {}
    for result in results:
        requests = requests_of(result.raw)
        label = f"{result.engine}: {result.work}"
        if requests:
            found.setdefault(label, []).extend(requests)
    return list(found.items())[:COLOURS]


def cumulative(values: Sequence[float], label: str, unit: str, colour: int) -> Series:
    """Which part of the values is at most so large, in percent; the usual percentiles are marked."""
    ordered = sorted(value * (1e3 if unit == "ms" else 1.0) for value in values)
    count = len(ordered)
    picked = sorted({0, count - 1, *(i * (count - 1) // MOST_POINTS for i in range(MOST_POINTS + 1))})
    points, part = [], 0.0
    for i in picked:  # steps: up at every value
        points += [(ordered[i], part), (ordered[i], part := 100 * (i + 1) / count)]
    marks = []
    for percent in (50, 90, 99):
        place = min(count - 1, math.ceil(count * percent / 100) - 1)
        told = f"{label}: {percent}% within {number(ordered[place])} {unit}"
        marks.append(((ordered[place], 100 * (place + 1) / count), told))
    return Series(label, points, marks, colour)


def over_time(requests: Sequence[Request], label: str, colour: int, num_bins: int = 60) -> Series:
    """Tokens per second in equal stretches of the run."""
    times = sorted(time for request in requests for time in request.token_times_s)
    width = times[-1] / num_bins or 1.0
    counts = [0] * num_bins
    for time in times:
        counts[min(int(time / width), num_bins - 1)] += 1
    return Series(label, [((i + 0.5) * width, count / width) for i, count in enumerate(counts)], (), colour)


RATED = {
    "median_ttft_ms": "median TTFT",
    "p99_ttft_ms": "p99 TTFT",
    "median_itl_ms": "median ITL",
    "p99_itl_ms": "p99 ITL",
}


def against_rate(results: Sequence[Result], name: str) -> list[Series]:
    """A latency against the requests per second that were answered, for every engine with several rates."""
    found: list[Series] = []
    for engine in dict.fromkeys(result.engine for result in results):
        by_work: dict[str, list[Result]] = {}
        for result in results:
            if result.kind == "serving" and result.engine == engine and result.figures.get(name):
                by_work.setdefault(result.work, []).append(result)
        points = sorted(
            (_median(group, "request_throughput"), _median(group, name), work) for work, group in by_work.items()
        )
        if len(points) > 1:
            marks = [((x, y), f"{engine}, {work}: {number(y)} ms at {number(x)} req/s") for x, y, work in points]
            found.append(Series(engine, [(x, y) for x, y, _ in points], marks, len(found)))
    return found[:COLOURS]


def _median(group: Sequence[Result], name: str) -> float:
    return statistics.median(result.figures[name] for result in group)
