from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.details import record, requests_of
from sgl.bench.figures import Outcome, summarize
from sgl.bench.report import against_rate, cumulative, over_time, runs_with_details, shares, tables
from sgl.bench.report_page import page
from sgl.bench.results import Result, of
from sgl.bench.svg import Axis, Bar, Series, bars, lines, number
from tests.bench.commands import Bench

VOID = {"meta", "line", "polyline", "circle", "rect"}


class Tree(HTMLParser):
    """Fails on a page whose elements do not close; collects tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and css in (attrs.get("class") or "")]


def outcomes(ttft_s: float) -> list[Outcome]:
    """Ten requests, one a second, of five tokens each."""
    return [Outcome(i, i + ttft_s + 0.4, [(i + ttft_s + 0.1 * t, 1) for t in range(5)], 10, 5) for i in range(10)] + [
        Outcome(3.5, 4.0, error="<broken>")
    ]


def serving(rate: float, ttft_s: float, **changes: Any) -> dict[str, Any]:
    """A line as serving writes it."""
    done = outcomes(ttft_s)
    known: dict[str, Any] = {"kind": "serving", "backend": "sglang", "dataset_name": "random", "request_rate": rate}
    known |= {"max_concurrency": None, "model": "m", "cache_state": "cold", "dataset_hash": "h"}
    return {**known, **summarize(done, 10 / rate), **changes}


def one_batch(engine: str, decode: float) -> dict[str, Any]:
    sizes = {"batch_size": 1, "input_len": 8, "output_len": 4}
    shares = {"decode_share_of_limit": decode / 100, "decode_bound_by": "memory", "prefill_share_of_limit": 0.5}
    return {"kind": "one-batch", "engine": engine, **sizes, "median_decode_throughput": decode, **shares}


def results(*raws: dict[str, Any]) -> list[Result]:
    found = [of(raw, "runs.jsonl") for raw in raws]
    assert all(found)
    return [result for result in found if result is not None]


def test_details_survive_the_file() -> None:
    written = json.loads(json.dumps(record(outcomes(0.5))))
    assert written["errors"].count("<broken>") == 1 and len(written["ttfts"]) == 11
    requests = requests_of(written)
    assert len(requests) == 10
    assert requests[3].start_s == 3.0 and requests[3].ttft_s == pytest.approx(0.5)
    assert requests[3].token_times_s == pytest.approx([3.5, 3.6, 3.7, 3.8, 3.9])
    assert requests_of({}) == [] and requests_of({**written, "itls": []}) == []
    sglang = {key: written[key] for key in ("ttfts", "itls", "errors")}  # what SGLang's own file has
    assert requests_of(sglang)[0].e2e_s == pytest.approx(0.9)


def test_table_has_medians_and_spread() -> None:
    (table,) = tables(results(one_batch("sgl", 90.0), one_batch("sgl", 100.0), one_batch("sgl", 80.0)))
    assert table.columns == ["decode tok/s", "prefill of limit", "decode of limit"]
    assert [(row.engine, row.repeats, row.cells) for row in table.rows] == [("sgl", 3, ["90 ±11%", "50%", "90%"])]


def test_other_conditions_are_other_work_and_broken_off_runs_are_none() -> None:
    runs = [one_batch("sgl", speed) for speed in (90.0, 100.0, 10.0)]
    runs[1]["cache_state"] = "warm"
    runs[2]["interrupted"] = True
    (table,) = tables(results(*runs))
    assert [(row.repeats, row.cells[0]) for row in table.rows] == [(1, "90"), (1, "100")]


def test_shares_name_what_binds() -> None:
    found = shares(results(one_batch("sgl", 80.0), one_batch("peer", 40.0)))
    assert [(bar.label, bar.share, bar.said) for bar in found] == [
        ("sgl: batch 1, 8 in, 4 out", 0.5, "prefill 50%"),
        ("sgl: batch 1, 8 in, 4 out", 0.8, "decode 80%, bound by memory"),
        ("peer: batch 1, 8 in, 4 out", 0.5, "prefill 50%"),
        ("peer: batch 1, 8 in, 4 out", 0.4, "decode 40%, bound by memory"),
    ]


def test_a_distribution_rises_to_all() -> None:
    values = [i / 1000 for i in range(1, 101)]
    series = cumulative(values, "x", "ms", 0)
    assert series.points[0] == (1.0, 0.0) and series.points[-1] == (100.0, 100.0)
    assert list(series.points) == sorted(series.points)
    assert [mark[0] for mark in series.marks] == [(50.0, 50.0), (90.0, 90.0), (99.0, 99.0)]
    assert len(cumulative([float(i) for i in range(100_000)], "x", "s", 0).points) < 1000


def test_throughput_over_time_has_all_tokens() -> None:
    requests = requests_of(record(outcomes(0.5)))
    series = over_time(requests, "x", 0, num_bins=10)
    width = series.points[1][0] - series.points[0][0]
    assert sum(rate for _, rate in series.points) * width == pytest.approx(50)


def test_latency_against_rate_needs_several_rates() -> None:
    found = against_rate(results(serving(2, 0.5), serving(1, 0.25), serving(1, 0.25)), "median_ttft_ms")
    assert [(one.label, list(one.points)) for one in found] == [("sglang", [(1.0, 250.0), (2.0, 500.0)])]
    assert against_rate(results(serving(1, 0.25)), "median_ttft_ms") == []


def test_page_is_whole_and_alone() -> None:
    detailed = [serving(rate, rate / 4, **record(outcomes(rate / 4))) for rate in (1, 2)]
    text = page(results(*detailed, one_batch("sgl", 80.0)))
    tree = Tree(text)
    assert [name for name, _ in tree.tags if name in ("script", "link", "img", "iframe")] == []
    assert not re.search(r"https?://|url\(|@import", text)
    headings = [text for text in tree.text if text in ("Latency distributions", "Throughput over time")]
    assert len(headings) == 2 and "Latency against rate" in tree.text and "Share of the limit" in tree.text
    charts = {attrs["aria-label"]: attrs for attrs in tree.of("svg")}
    assert {"Time to first token", "Whole request", "median TTFT", "Share of the limit"} <= charts.keys()
    assert len(tree.of("polyline", "line s0")) == len(tree.of("polyline", "line s1")) + 4  # the curves against rate
    assert len(tree.of("rect", "bar")) == 2
    for attrs in tree.of("polyline"):
        for x, y in (pair.split(",") for pair in (attrs["points"] or "").split()):
            assert 0 <= float(x) <= 520 and 0 <= float(y) <= 300
    assert "prefers-color-scheme: dark" in text


def test_page_without_details_leaves_the_charts_out() -> None:
    tree = Tree(page(results(serving(1, 0.25))))
    assert tree.of("svg") == [] and "serving" in tree.text
    assert runs_with_details(results(serving(1, 0.25))) == []


def test_everything_from_files_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&"
    raws = [serving(rate, 0.25, backend=evil, dataset_name=evil, model=evil, flags={evil: evil}) for rate in (1, 2)]
    raws = [{**raw, **record(outcomes(0.25)), "machine": {"device_name": evil, "fingerprint": "f"}} for raw in raws]
    raws.append({**one_batch(evil, 50.0), "decode_bound_by": evil, "time": evil})
    text = page(results(*raws), evil)
    assert "<script" not in text
    tree = Tree(text)
    assert all(
        key in ("class", "content", "charset", "name", "lang") or "<" not in (value or "") or key == "aria-label"
        for _, attrs in tree.tags
        for key, value in attrs.items()
    )
    assert evil in tree.text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (3.0, "3"), (123.4, "123"), (12000, "12k"), (2.5e6, "2.5M")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_axes() -> None:
    assert Axis("x", 0, 100).ticks() == [0, 20, 40, 60, 80, 100]
    assert Axis("x", 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    log = Axis.over("x", [1.0, 1000.0])
    assert log.is_log and log.place(1.0) == 0 and log.place(1000.0) == 1
    assert log.place(31.6227766) == pytest.approx(0.5) and {1.0, 10.0, 100.0, 1000.0} <= set(log.ticks())
    flat = Axis.over("x", [5.0, 5.0])
    assert flat.high > flat.low and flat.ticks()


def test_charts_parse() -> None:
    series = [Series("a<b", [(0, 0), (1, 1)], [((1, 1), "tip & more")])]
    Tree(lines(series, Axis("x", 0, 1), Axis("y", 0, 1), "t"))
    tree = Tree(bars([Bar("a", 1.7, "170%")], "t"))
    assert tree.of("rect", "bar")[0]["width"] == "240.0"  # not beyond the edge


def test_command(bench: Bench, tmp_path: Path) -> None:
    file, out = tmp_path / "runs.jsonl", tmp_path / "page.html"
    file.write_text("".join(json.dumps(raw) + "\n" for raw in (serving(1, 0.25), one_batch("sgl", 80.0))))
    done = bench("report", str(file))
    assert done.returncode == 0 and "serving" in done.stdout and "one-batch" in done.stdout, done.stderr
    done = bench("report", str(file), "-o", str(out), "--title", "Mine")
    assert done.returncode == 0 and done.stdout == "" and "Written to" in done.stderr
    assert "<title>Mine</title>" in out.read_text()
    done = bench("report", str(file), "-o", "/nowhere/x.html")
    assert done.returncode == 2 and "--output /nowhere/x.html cannot be written" in done.stderr
