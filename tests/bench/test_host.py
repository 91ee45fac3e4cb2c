"""The benchmark of the host side, with little to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl.bench import host
from sgl.bench.host import Figure, Sizes, measure, results
from tests.cli.test_main import run

SMALL = Sizes(
    prompt_len=256,
    num_prompts=20,
    num_leaves=200,
    num_evicted=50,
    running=(2, 3),
    rows=(2,),
    num_steps=30,
    num_streams=3,
    num_tokens=5,
)
NAMES = ["radix_insert", "radix_match", "evict", "schedule_2", "schedule_3", "batch_2", "wire", "stream"]


def test_everything_is_measured_once_a_round() -> None:
    told: list[str] = []
    figures = measure(2, SMALL, told.append)
    assert [figure.name for figure in figures] == NAMES
    assert all(len(figure.samples) == 2 and min(figure.samples) > 0 for figure in figures)
    assert "round 2 of 2: front: detokenize and stream" in told


def test_a_target_is_met_by_the_median() -> None:
    fast, slow = [1.0, 2.0, 9.0], [4.0, 5.0, 6.0]
    assert Figure("a", "", "us", 3.0, fast).met and not Figure("a", "", "us", 3.0, slow).met
    assert Figure("a", "", "tokens/s", 3.0, slow).met and not Figure("a", "", "tokens/s", 3.0, fast).met
    assert Figure("a", "", "us", None, fast).met is None
    assert (Figure("a", "", "us", None, fast).best, Figure("a", "", "tokens/s", None, fast).best) == (1.0, 9.0)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    figures = [Figure("a", "the first", "us", 3.0, [4.0]), Figure("b", "the second", "tokens/s", None, [123456.0])]
    monkeypatch.setattr(host, "measure", lambda rounds, note: figures)
    monkeypatch.setattr("sgl.bench.others.Usage.share", lambda self, later: 0.0)
    file = tmp_path / "out.jsonl"
    assert run(monkeypatch, "bench", "host", "--output-file", str(file)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["the", "first", "4.00", "4.00", "us", "at", "most", "3", "(missed)"] in rows
    assert ["the", "second", "123,456", "123,456", "tokens/s"] in rows
    line = json.loads(file.read_text())
    assert line["kind"] == "host" and line["figures"] == json.loads(json.dumps(results(figures)))
    assert line["machine"]["fingerprint"]
    assert run(monkeypatch, "bench", "host", "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"]["a"]["met"] is False
    assert run(monkeypatch, "bench", "host", "--rounds", "0") == 2
    monkeypatch.setattr("sgl.bench.others.Usage.share", lambda self, later: 0.4)
    assert run(monkeypatch, "bench", "host", "--json") == 2
    screen = capsys.readouterr()
    assert not screen.out and "Other programs took 40% of the processor time" in screen.err
