from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sgl.bench.engines import Prompts, SglEngine, Timing, TransformersEngine
from sgl.bench.one_batch import ModelCost, Run, Workload, measure, medians
from sgl.engine.base import sources
from sgl.engine.base.config import EngineConfig
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl", "bench", "one-batch", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


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


def test_figures_follow_from_the_times() -> None:
    engine = ClockworkEngine("clockwork", [])
    cost = ModelCost(weight_bytes=10**9, kv_bytes_per_token=10**6)
    (run,) = measure([engine], [Workload(4, 50, 11)], 1, 100, cost)
    assert run.prefill_latency == pytest.approx(1.0)
    assert run.prefill_throughput == pytest.approx(200.0)
    assert run.median_decode_latency == pytest.approx(0.1)
    assert run.median_decode_throughput == pytest.approx(40.0)
    assert run.overall_throughput == pytest.approx(4 * 61 / 2.0)
    step_bytes = 10**9 + 4 * 55.5 * 10**6
    bandwidth = (run.bandwidth_before + run.bandwidth_after) / 2
    assert run.decode_share_of_bandwidth == pytest.approx(10 * step_bytes / bandwidth)


def test_engines_take_turns_on_prompts_that_are_never_repeated() -> None:
    log: list[str] = []
    a, b = ClockworkEngine("a", log), ClockworkEngine("b", log)
    list(measure([a, b], [Workload(2, 8, 3)], 3, 1000, ModelCost(1, 1)))
    assert log == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert a.prompts[1:] == b.prompts[1:]
    seen = [tuple(prompt) for prompts in a.prompts for prompt in prompts]
    assert len(set(seen)) == len(seen)


def test_decoding_counts_only_while_all_requests_decode() -> None:
    timing = Timing(0.0, [[1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5]])
    assert timing.prefilled_s == 2.5
    assert timing.decode_tokens_per_s == pytest.approx(3 / 1.5)  # 3.0, 3.5 and 4.0 between 2.5 and 4.0


def test_median_and_range() -> None:
    (run,) = measure([ClockworkEngine("a", [])], [Workload(1, 4, 2)], 1, 50, ModelCost(1, 1))
    runs = [Run(**{**run.to_dict(), "total_latency": value}) for value in (3.0, 1.0, 2.0)]  # type: ignore[arg-type]
    assert medians(runs, lambda r: r.total_latency) == (2.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = make_checkpoint("llama", tmp_path_factory.mktemp("llama"))
    return sources.configure(sources.from_call({"model_path": str(path), "max_total_tokens": 1024}))


def test_both_engines_answer_with_exactly_the_tokens_asked_for(config: EngineConfig) -> None:
    engines = [SglEngine(config), TransformersEngine(config)]
    for engine in engines:
        timing = engine.run([[5, 6, 7], [8, 9, 10]], 6)
        assert [len(times) for times in timing.tokens] == [6, 6]
        assert timing.start_s < timing.prefilled_s <= timing.end_s
        engine.close()


def test_command_writes_every_run_and_a_table(config: EngineConfig, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    arguments = ["--batch", "1,2", "--input", "8", "--output-len", "4", "--repeats", "2", "--output-file", str(file)]
    done = bench(config.model.model_path, *arguments)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [run["batch_size"] for run in runs] == [1, 1, 2, 2]
    assert all(run["prefill_latency"] > 0 and run["overall_throughput"] > 0 for run in runs)
    assert "decode tok/s" in done.stdout and "sgl" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size takes positive numbers"),
        (["--input-len", "x"], "--input-len takes positive numbers"),
        (["--shape", "huge"], "--shape huge is unknown; use qwen2.5-0.5b, smollm2-135m"),
        (["--versus", "nothing"], "--versus nothing is unknown"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2 and message in done.stderr


def test_vocabulary_bounds_the_prompts() -> None:
    engine = ClockworkEngine("a", [])
    list(measure([engine], [Workload(3, 40, 2)], 2, VOCAB_SIZE, ModelCost(1, 1)))
    assert max(max(prompt) for prompts in engine.prompts for prompt in prompts) < VOCAB_SIZE
