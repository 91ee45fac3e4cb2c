from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.compare import Batch, compare, measure, split, turns, warnings
from sgl.bench.engines import Timing
from sgl.bench.intervals import Ratio, paired_ratio, unpaired_ratio
from sgl.bench.results import Result, is_time, of, read
from sgl.engine.base.errors import ConfigError
from tests.bench.commands import Bench
from tests.bench.fake_server import FakeServer, serve
from tests.models.checkpoints import make_checkpoint


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)


class Clockwork:
    """An engine as fast as it was made; remembers who was asked what."""

    def __init__(self, name: str, step_s: float, log: list[tuple[str, Any]]) -> None:
        self.name, self.step_s, self.log = name, step_s, log

    def run(self, prompts: Sequence[Sequence[int]], output_len: int) -> Timing:
        self.log.append((self.name, tuple(prompts[0])))
        return Timing(0.0, [[1.0 + i * self.step_s for i in range(output_len)] for _ in prompts])


def test_order_is_a_b_b_a() -> None:
    assert "".join(side for _, side in turns(4)) == "ABBAABBA"
    assert [repeat for repeat, _ in turns(2)] == [0, 0, 1, 1]


def test_both_get_the_same_prompts_in_turns() -> None:
    log: list[tuple[str, Any]] = []
    sides = {"A": Clockwork("A", 0.5, log), "B": Clockwork("B", 0.25, log)}
    raws = list(measure(sides, [Batch(2, 8, 5)], 6, 2000))
    assert "".join(name for name, _ in log[2:]) == "ABBAABBAABBA"
    asked = {name: [prompt for who, prompt in log if who == name] for name in "AB"}
    assert len(set(asked["A"])) == 7
    assert sorted(asked["A"]) == sorted(asked["B"])
    a, b = split(raws)
    lines = {line.figure: line for line in compare(a, b, paired=True)}
    assert lines["median_decode_latency"].ratio == Ratio(2.0, 2.0, 2.0, pytest.approx(1 - 2 / 2**6))
    assert lines["median_decode_latency"].verdict == "B"
    assert lines["median_decode_throughput"].ratio.value == 0.5 and lines["median_decode_throughput"].verdict == "B"
    assert lines["prefill_throughput"].ratio.value == 1.0 and lines["prefill_throughput"].verdict == ""


def test_a_repeat_that_one_side_lacks_is_dropped() -> None:
    sides = {"A": Clockwork("A", 0.5, []), "B": Clockwork("B", 0.25, [])}
    raws = list(measure(sides, [Batch(1, 8, 5)], 3, 2000))[:-1]
    assert [len(side) for side in split(raws)] == [2, 2]


def test_paired_ratio_by_brute_force() -> None:
    rng = random.Random(1)
    b = [rng.uniform(1, 10) for _ in range(8)]  # the machine drifts a lot
    a = [2 * value * rng.uniform(0.98, 1.02) for value in b]
    ratio = paired_ratio(a, b)
    ordered = sorted(x / y for x, y in zip(a, b, strict=True))
    assert ratio.value == statistics.median(ordered)
    misses = 2 * sum(1 for signs in itertools.product((0, 1), repeat=8) if sum(signs) == 0) / 2**8
    assert (ratio.low, ratio.high, ratio.confidence) == (ordered[0], ordered[-1], pytest.approx(1 - misses))
    assert ratio.is_certain and 1.95 < ratio.low < 2 < ratio.high < 2.05
    assert not paired_ratio(a[:5], b[:5]).is_certain  # a range of 5 is no 95%
    assert paired_ratio([3.0], [2.0]).interval == "-"


def test_unpaired_ratio_by_all_resamples() -> None:
    a, b = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0], [5.0, 5.5, 6.0, 6.5, 7.0, 7.5]
    ratio = unpaired_ratio(a, b)
    assert ratio.value == pytest.approx(12.5 / 6.25)
    medians = [[statistics.median(p) for p in itertools.product(values, repeat=6)] for values in (a, b)]
    rng = random.Random(5)
    exact = sorted(rng.choice(medians[0]) / rng.choice(medians[1]) for _ in range(100_000))
    assert ratio.low == pytest.approx(exact[2500], rel=0.04) and ratio.high == pytest.approx(exact[97500], rel=0.04)
    assert unpaired_ratio(a, b) == ratio  # seeded
    assert unpaired_ratio(a[:5], b).confidence == 0.0


@pytest.mark.parametrize("figure", ["ttft_s", "wall_cold_s", "itl_ms", "p99_ttft_ms", "duration", "total_latency"])
def test_times_are_better_small(figure: str) -> None:
    assert is_time(figure)


@pytest.mark.parametrize("figure", ["decode_tok_s", "req_s", "output_throughput", "goodput", "share_of_limit"])
def test_rates_are_better_large(figure: str) -> None:
    assert not is_time(figure)


def line(engine: str = "sgl", **changes: Any) -> dict[str, Any]:
    """A line as one-batch writes it."""
    known: dict[str, Any] = {"kind": "one-batch", "engine": engine, "batch_size": 1, "input_len": 8, "output_len": 4}
    known |= {"prefill_throughput": 100.0, "total_latency": 2.0, "cache_state": "cold", "dataset_hash": "d1"}
    return {**known, **changes}


def results(*raws: dict[str, Any]) -> list[Result]:
    found = [of(raw, "file") for raw in raws]
    return [result for result in found if result is not None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_state": "warm"}, r"caches were not in the same state \(A: cold and B: warm\)"),
        ({"cache_state": ""}, "A: cold and B: not said"),
        ({"dataset_hash": "d2"}, "A and B had different prompts"),
        ({"batch_size": 2}, "no work in common: A has batch 1, 8 in, 4 out; B has batch 2, 8 in, 4 out"),
        ({"interrupted": True}, "a run of B was broken off"),
        ({"failed": 3}, "a run of B has 3 failed requests"),
    ],
)
def test_what_is_not_alike_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(results(line()), results(line(**changes)), paired=False)


def test_engines_are_kept_apart_where_a_file_has_several() -> None:
    a = results(line("sgl"), line("transformers", prefill_throughput=40.0))
    b = results(line("sgl", prefill_throughput=50.0), line("transformers", prefill_throughput=40.0))
    lines = [(found.work, found.ratio.value) for found in compare(a, b, paired=False) if "prefill" in found.figure]
    assert lines == [("batch 1, 8 in, 4 out (sgl)", 2.0), ("batch 1, 8 in, 4 out (transformers)", 1.0)]


def test_what_weakens_a_comparison_is_said() -> None:
    a, b = results(line(machine={"fingerprint": "m1"})), results(line(machine={"fingerprint": "m2"}, model="x"))
    assert warnings(a, b) == ["A and B are of different machines.", "A and B are of different models."]
    moved = results(line(cache_state="any", bandwidth_moved=True))
    assert len(warnings(moved, moved)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no results"),
        ("{}\n", "Line 1 of .* is not a result of `sgl bench`"),
        (json.dumps(line()) + "\nnot json\n", "Line 2 of "),
        ('{"kind": "peers", "figures": 3}\n', "Line 1 of "),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.jsonl")


def test_command_on_files(bench: Bench, tmp_path: Path) -> None:
    for name, speed in (("a", 100.0), ("b", 50.0)):
        rows = [line(prefill_throughput=speed + i) for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = bench("compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert done.returncode == 0, done.stderr
    (row,) = [text.split() for text in done.stdout.splitlines() if text.startswith("prefill_throughput")]
    assert row[:5] == ["prefill_throughput", "(tok/s)", "102.5", "52.5", "1.952"] and row[-1] == "A"


def test_command_on_two_configurations(bench: Bench, tmp_path: Path) -> None:
    checkpoint, file = make_checkpoint("llama", tmp_path / "tiny"), tmp_path / "runs.jsonl"
    common = ["--model-path", str(checkpoint), "--max-total-tokens", "1024", "--cpu-threads", "1", "--repeats", "2"]
    sizes = ["--batch", "2", "--input-len", "8", "--output-len", "4", "--output-file", str(file)]
    done = bench("compare", *common, *sizes, "--a", "--page-size 16", "--b", "--page-size=32")
    assert done.returncode == 0, done.stderr
    assert "A: --page-size 16" in done.stdout and "batch 2, 8 in, 4 out" in done.stdout
    assert "nothing is called better" in done.stderr
    assert [json.loads(text)["engine"] for text in file.read_text().splitlines()] == ["A", "B", "B", "A"]


def test_command_on_two_servers(bench: Bench, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "tiny")
    with serve(FakeServer(str(checkpoint))) as first, serve(FakeServer(str(checkpoint))) as second:
        words = ["--num-prompts", "3", "--random-input", "12", "--random-output", "7", "--repeats", "2"]
        done = bench("compare", first.url, f"vllm+{second.url}", *words, "--warmup-requests", "0")
    assert done.returncode == 0, done.stderr
    assert "median_ttft_ms" in done.stdout and "What was cached is not known" in done.stderr
    prompts = [[body.get("input_ids") or body["prompt"] for body in server.bodies] for server in (first, second)]
    assert len(prompts[0]) == 6 and sorted(prompts[0]) == sorted(prompts[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs two: A B (result files or URLs of servers), or --a FLAGS --b FLAGS"),
        (["a.jsonl", "http://x"], "must both be result files or both be servers"),
        (["a.jsonl", "b.jsonl", "--a", "--page-size 16"], "leave out the files"),
        (["/nowhere/a", "/nowhere/b"], "/nowhere/a cannot be read: No such file"),
        (["--a", "--pagesize 3"], "There is no option --pagesize"),
        (["--a", "", "--batch", "0"], "--batch-size takes positive numbers"),
    ],
)
def test_mistakes_are_named(bench: Bench, words: list[str], message: str) -> None:
    done = bench("compare", *words)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
