from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from sgl.bench.contamination import ContaminatedError
from sgl.bench.engines import Prompts, SglEngine, Timing
from sgl.bench.limits import Yardstick
from sgl.bench.one_batch import Workload, measure
from sgl.engine.base import sources
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.cost import AttentionCost, Cost, Weights
from tests.bench.commands import Bench
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint


class ClockworkEngine:
    """Takes one second for the prompts and a tenth for every further token; remembers what it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.prompts: list[Prompts] = []
        self._log = log

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        self.prompts.append(prompts)
        self._log.append(self.name)
        return Timing(5.0, [[6.0 + 0.1 * i for i in range(output_len)] for _ in prompts])

    def close(self) -> None:
        pass


COST = Cost(
    linears=(Weights(format="bf16", params=5 * 10**8, size_bytes=10**9),),
    attention=(AttentionCost(num_layers=1, flops_per_pair=0, kv_bytes_per_token=10**6),),
    head=Weights(format="bf16", params=0, size_bytes=0),
    format="bf16",
)
UNIT = Yardstick(COST, {"bf16": 1e12}, 1000)


@pytest.fixture(autouse=True)
def steady_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)
    monkeypatch.setattr("sgl.bench.bandwidth.BandwidthProbe.measure", lambda self: 2e10)


def test_figures_follow_from_the_times() -> None:
    engine = ClockworkEngine("clockwork", [])
    (run,) = measure([engine], [Workload(4, 50, 11)], 1, 100, UNIT)
    found = run.to_dict()
    assert found["prefill_latency"] == pytest.approx(1.0)
    assert found["prefill_throughput"] == pytest.approx(200.0)
    assert found["median_decode_latency"] == pytest.approx(0.1)
    assert found["median_decode_throughput"] == pytest.approx(40.0)
    assert found["overall_throughput"] == pytest.approx(4 * 61 / 2.0)
    # Ten steps, the first with 51 tokens of each of 4 requests in the cache, the last with 60.
    step_bytes = 10**9 + 4 * 55.5 * 10**6
    assert found["decode_share_of_bandwidth"] == pytest.approx(10 * step_bytes / 2e10)
    assert found["decode_share_of_limit"] == pytest.approx(step_bytes / 2e10 / 0.1)
    assert (found["decode_bound_by"], found["prefill_bound_by"]) == ("memory", "bf16 GEMM")
    assert found["prefill_share_of_limit"] == pytest.approx(200 * 10**9 / 1e12 / 1.0)


def test_one_token_is_no_decoding() -> None:
    (run,) = measure([ClockworkEngine("clockwork", [])], [Workload(1, 50, 1)], 1, 100, UNIT)
    assert [share.phase for share in run.shares] == ["prefill"] and run.figures["decode_share_of_bandwidth"] == 0.0


def test_prompts_that_were_cached_are_refused() -> None:
    class Cached(ClockworkEngine):
        def run(self, prompts: Prompts, output_len: int) -> Timing:
            timing = super().run(prompts, output_len)
            timing.cached = 48
            return timing

    with pytest.raises(ContaminatedError, match="a had 48 tokens of new prompts in its cache"):
        list(measure([Cached("a", [])], [Workload(1, 50, 2)], 1, 1000, UNIT))


def test_a_clock_that_jumps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.contamination.time.time", itertools.count(0, 60).__next__)
    with pytest.raises(ContaminatedError, match="The clock jumped"):
        list(measure([ClockworkEngine("a", [])], [Workload(1, 4, 2)], 1, 50, UNIT))


def test_engines_take_turns_on_prompts_that_are_never_repeated() -> None:
    log: list[str] = []
    a, b = ClockworkEngine("a", log), ClockworkEngine("b", log)
    list(measure([a, b], [Workload(2, 8, 3)], 3, 1000, UNIT))
    assert log == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert a.prompts[1:] == b.prompts[1:]
    seen = [tuple(prompt) for prompts in a.prompts for prompt in prompts]
    assert len(set(seen)) == len(seen)


def test_decoding_counts_only_while_all_requests_decode() -> None:
    timing = Timing(0.0, [[1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5]])
    assert timing.prefilled_s == 2.5
    assert timing.decode_tokens_per_s == pytest.approx(3 / 1.5)  # 3.0, 3.5 and 4.0 between 2.5 and 4.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = make_checkpoint("llama", tmp_path_factory.mktemp("llama"))
    return sources.configure(sources.from_call({"model_path": str(path), "max_total_tokens": 1024}))


def test_the_engine_answers_with_exactly_the_tokens_asked_for(config: EngineConfig) -> None:
    engine = SglEngine(config)
    timing = engine.run([[5, 6, 7], [8, 9, 10]], 6)
    assert [len(times) for times in timing.tokens] == [6, 6]
    assert timing.start_s < timing.prefilled_s <= timing.end_s
    engine.close()


def test_command_writes_every_run_and_a_table(bench: Bench, config: EngineConfig, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    arguments = ["--batch", "1,2", "--input", "8", "--output", "16", "--repeats", "2", "--output-file", str(file)]
    done = bench("one-batch", config.model.model_path, *arguments)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [run["batch_size"] for run in runs] == [1, 1, 2, 2]
    assert all(run["prefill_latency"] > 0 and run["overall_throughput"] > 0 for run in runs)
    assert [("summary" in run, run["repeat"]) for run in runs] == [(False, 1), (True, 2)] * 2
    assert runs[1]["summary"]["medians"].keys() == runs[1]["summary"]["intervals"].keys() > {"decode_share_of_limit"}
    assert {(run["kind"], run["cache_state"], run["seed"], run["data"]["name"]) for run in runs} == {
        ("one-batch", "cold", 1, "random")
    }
    assert len({run["dataset_hash"] for run in runs}) == 4
    assert all(run["peaks"] == {"bf16": 1e12, "fp32": 1e12} for run in runs)
    assert "decode tok/s" in done.stdout and "of limit, bound by" in done.stdout


def test_the_least_share_of_the_limit_is_a_gate(bench: Bench, config: EngineConfig) -> None:
    arguments = ["--input", "8", "--output-len", "4", "--repeats", "1", "--min-limit", "decode=0.99"]
    done = bench("one-batch", config.model.model_path, *arguments)
    assert done.returncode == 1
    assert "--min-limit: decode reached " in done.stderr and "less than 99%." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size takes positive numbers"),
        (["--input-len", "x"], "--input-len takes positive numbers"),
        (
            ["--shape", "huge"],
            "--shape huge is unknown; use llama-2-7b, llama-3.1-8b, qwen2.5-0.5b, qwen3-0.6b, qwen3-8b, smollm2-135m",
        ),
        (["--versus", "nothing"], "--versus nothing is unknown"),
        (["--correct", "--versus", "nothing"], "--versus nothing is unknown"),
        (["--correct", "--peer-python", "/nowhere/python"], "--peer-python: there is no program /nowhere/python."),
        (["--versus", "openvino", "--model-path", "/nowhere"], "openvino needs --peer-model"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0."),
        (["--min-limit", "run=1"], "--min-limit must be a share like 0.7, or decode=0.7,prefill=0.7"),
        (["--output-file", "/nowhere/x"], "--output-file /nowhere/x cannot be written"),
    ],
)
def test_mistakes_are_named(bench: Bench, arguments: list[str], message: str) -> None:
    done = bench("one-batch", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_vocabulary_bounds_the_prompts() -> None:
    engine = ClockworkEngine("a", [])
    list(measure([engine], [Workload(3, 40, 2)], 2, VOCAB_SIZE, UNIT))
    assert max(max(prompt) for prompts in engine.prompts for prompt in prompts) < VOCAB_SIZE


def test_profile_leaves_a_trace_of_every_run(
    bench: Bench, config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    arguments = ["--input", "8", "--output", "4", "--repeats", "1", "--profile"]
    done = bench("one-batch", config.model.model_path, *arguments)
    assert done.returncode == 0, done.stderr
    traces = sorted((tmp_path / "traces").iterdir())
    assert len(traces) == 2  # of the warm-up, and of the run
    assert [line.removeprefix("Trace: ") for line in done.stderr.splitlines() if "Trace" in line] == list(
        map(str, traces)
    )
    assert json.loads(gzip.decompress(traces[1].read_bytes()))["traceEvents"]
