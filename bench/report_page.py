"""One self-contained HTML page for a set of results: no scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import sgl
from sgl.bench import report
from sgl.bench.details import Request
from sgl.bench.results import Result
from sgl.bench.svg import COLOURS, Axis, Series, bars, lines

LIGHT = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#4a3aa7", "#e34948", "#e87ba4", "#008300")
DARK = ("#3987e5", "#d95926", "#199e70", "#c98500", "#9085e9", "#e66767", "#d55181", "#008300")
assert len(LIGHT) == len(DARK) == COLOURS

_STYLE = """
:root { --paper: #fcfcfb; --panel: #fff; --ink: #0b0b0b; --soft: #52514e; --rule: #e4e3df; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --paper: #121211; --panel: #1a1a19; --ink: #fff; --soft: #c3c2b7; --rule: #33332f; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, sans-serif }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 17px; margin: 36px 0 12px } h3 { font-size: 14px; margin: 0 0 6px }
p { margin: 4px 0 } .soft { color: var(--soft) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 16px }
.card { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
  overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: right; font-weight: 500; color: var(--soft) }
td { text-align: right; border-top: 1px solid var(--rule) }
th, td { padding: 5px 10px; white-space: nowrap } .text { text-align: left }
svg { width: 100%; max-width: 720px; height: auto; display: block; font-size: 11px }
svg.wide { min-width: 640px; max-width: 960px }
.grid { stroke: var(--rule) } .axis { stroke: var(--soft) } .tick, .name { fill: var(--soft) }
.label { fill: var(--ink) } .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round }
.mark { fill: var(--c); stroke: var(--panel); stroke-width: 2 } .bar { fill: var(--c) }
.within { fill: #fff; pointer-events: none }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: 12px }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; background: var(--c); margin-right: 6px }
CLASSES
details { margin-top: 8px } summary { cursor: pointer; color: var(--soft) } pre { overflow-x: auto; font-size: 12px }
"""


def page(results: Sequence[Result], title: str = "Benchmark report") -> str:
    """The page. What the results do not have is left out."""
    runs = report.runs_with_details(results)
    sections = [
        *(_table(table) for table in report.tables(results)),
        _shares(results),
        _latencies(runs),
        _over_time(runs),
        _against_rate(results),
        _origin(results),
    ]
    return document(title, _facts(results) + "\n".join(filter(None, sections)))


def document(title: str, body: str) -> str:
    """A page of that title: its style is in it, and it asks nobody for anything."""
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = f"<title>{escape(title)}</title><style>{_style()}</style>"
    head = f"<h1>{escape(title)}</h1>"
    return f'<!doctype html>\n<html lang="en"><head>{meta}{style}</head><body>{head}{body}</body></html>\n'


def _style() -> str:
    themes = [" ".join(f"--s{i}: {colour};" for i, colour in enumerate(colours)) for colours in (LIGHT, DARK)]
    classes = " ".join(f".s{i} {{ --c: var(--s{i}) }}" for i in range(COLOURS))
    return _STYLE.replace("LIGHT", themes[0]).replace("DARK", themes[1]).replace("CLASSES", classes)


def _facts(results: Sequence[Result]) -> str:
    machines = {}
    for result in results:
        machine = result.raw.get("machine")
        if isinstance(machine, dict):
            machines[result.machine] = (
                f"{machine.get('device_name')}, {machine.get('cores')} cores, {machine.get('isa')}"
            )
    models = sorted({result.model for result in results if result.model})
    times = sorted(str(result.raw["time"]) for result in results if result.raw.get("time"))
    facts = [f"{len(results)} results", *machines.values(), *models]
    if times:
        facts.append(times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}")
    return f'<p class="soft">{escape(" · ".join(facts))}</p>'


def _table(table: report.Table) -> str:
    texts = ("engine", "work")
    head = "".join(f'<th class="text">{name}</th>' for name in texts)
    head += "".join(f"<th>{escape(name)}</th>" for name in ("runs", *table.columns))
    rows = []
    for row in table.rows:
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in (row.engine, row.work))
        cells += "".join(f"<td>{escape(text)}</td>" for text in (str(row.repeats), *row.cells))
        rows.append(f"<tr>{cells}</tr>")
    note = '<p class="soft">Medians, and how far from them the farthest run is.</p>'
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>{escape(table.kind)}</h2><div class="card">{content}</div>{note}'


def _shares(results: Sequence[Result]) -> str:
    rows = report.shares(results)
    if not rows:
        return ""
    return f'<h2>Share of the limit</h2><div class="card">{bars(rows, "Share of the limit")}</div>'


def _latencies(runs: Sequence[tuple[str, list[Request]]]) -> str:
    charts = []
    for title, (unit, of) in report.LATENCIES.items():
        series = [
            report.cumulative(values, label, unit, colour)
            for colour, (label, requests) in enumerate(runs)
            if (values := [value for request in requests for value in of(request)])
        ]
        charts.append(_chart(title, series, unit, "% within", from_zero=False))
    return _cards("Latency distributions", charts)


def _over_time(runs: Sequence[tuple[str, list[Request]]]) -> str:
    series = [report.over_time(requests, label, colour) for colour, (label, requests) in enumerate(runs)]
    return _cards("Throughput over time", [_chart("Output tokens per second", series, "seconds", "tok/s")])


def _against_rate(results: Sequence[Result]) -> str:
    charts = [
        _chart(title, report.against_rate(results, name), "answered requests per second", "ms")
        for name, title in report.RATED.items()
    ]
    return _cards("Latency against rate", charts)


def _chart(title: str, series: Sequence[Series], x: str, y: str, *, from_zero: bool = True) -> str:
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    across = Axis.over(x, [a for a, _ in points], from_zero=from_zero)
    up = Axis.over(y, [b for _, b in points], from_zero=True)
    return f"<h3>{escape(title)}</h3>{lines(series, across, up, title)}"


def _cards(title: str, charts: Sequence[str]) -> str:
    cards = "".join(f'<div class="card">{chart}</div>' for chart in charts if chart)
    return f'<h2>{escape(title)}</h2><div class="cards">{cards}</div>' if cards else ""


def _origin(results: Sequence[Result]) -> str:
    """How each set of results came about, folded away."""
    names = ("flags", "versions", "cache_state", "seed", "dataset_hash", "machine")
    blocks = []
    for source in dict.fromkeys(result.source for result in results):
        own = [result for result in results if result.source == source]
        told = "\n".join(f"{name}: {own[0].raw[name]}" for name in names if name in own[0].raw)
        summary = f"{source}: {len(own)} results"
        blocks.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(told)}</pre></details>")
    return f'<h2>Origin</h2><div class="card">{"".join(blocks)}<p class="soft">sgl {escape(sgl.__version__)}</p></div>'
