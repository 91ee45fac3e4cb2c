from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from sgl.bench.data import DataOptions, Sample, Vocabulary, load, warm_up
from sgl.bench.load import Run, Traffic, run_until_interrupt
from sgl.bench.offline import Offline
from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from tests.bench.commands import Bench
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint

KEYS = {
    *("successful_requests", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "input_throughput", "output_throughput", "total_throughput"),
    *("sgl_version", "versions", "flags", "seed", "dataset_hash", "machine", "cache_state"),
    *("bandwidth_before", "bandwidth_after", "bandwidth_moved"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("offline") / "tiny")


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)


def measure(checkpoint: Path, samples: list[Sample], warm: list[Sample]) -> dict[str, object]:
    config = sources.configure(sources.from_call({"model_path": str(checkpoint), "max_total_tokens": 2048}))
    engine, run = AsyncEngine.start(config, in_process=True), Run()
    try:
        benchmark = Offline(engine)
        asyncio.run(benchmark.measure(run, samples, Traffic(), warm, flush=True))
        assert benchmark.verify(run, samples, "cold") == []
        return benchmark.result(run, Traffic(), {}, flush=True)
    finally:
        engine.close()


def test_tokens_are_counted_and_the_cache_is_empty_at_the_start(checkpoint: Path) -> None:
    vocabulary = Vocabulary(range(4, VOCAB_SIZE), lambda text: [])
    samples = load(DataOptions(num_prompts=7, random_input=40, random_output=6), vocabulary)
    # A warm-up with the same prompts would answer from the cache, were it not emptied.
    result = measure(checkpoint, samples, [*samples, *warm_up(samples, 2, vocabulary)])
    assert (result["successful_requests"], result["failed"], result["total_cached_tokens"]) == (7, 0, 0)
    assert result["total_input_tokens"] == sum(len(sample.input_ids) for sample in samples)
    assert result["total_output_tokens"] == sum(sample.output_len for sample in samples)


def test_shared_prefixes_are_found(checkpoint: Path) -> None:
    options = DataOptions(
        dataset_name="generated-shared-prefix", prefix_groups=1, prompts_per_group=6, prefix_len=64, question_len=8
    )
    result = measure(checkpoint, load(options, Vocabulary(range(4, VOCAB_SIZE), lambda text: [])), [])
    assert result["successful_requests"] == 6 and result["total_cached_tokens"] != 0


def test_a_request_that_does_not_fit_fails_alone(checkpoint: Path) -> None:
    result = measure(checkpoint, [Sample((5, 6, 7), 4), Sample((5,) * 300, 4), Sample((8, 9), 4)], [])
    assert (result["successful_requests"], result["failed"]) == (2, 1)
    assert "context length" in str(result["first_error"])


def test_command_prints_and_records(bench: Bench, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    words = ["--num-prompt", "5", "--random-input", "16", "--random-output", "4", "--random-range", "1"]
    done = bench(
        "offline", str(checkpoint), *words, "--mem-frac=0.1", "--max-total-tokens", "1024", "--output-file", str(file)
    )
    assert done.returncode == 0, done.stderr
    assert "Offline Throughput Benchmark Result" in done.stdout and "Memory bandwidth before, after" in done.stdout
    run = json.loads(file.read_text())
    assert run.keys() >= KEYS
    assert (run["successful_requests"], run["total_input_tokens"], run["total_output_tokens"]) == (5, 80, 20)
    assert run["flags"]["engine"]["mem_fraction_static"] == 0.1 and run["cache_state"] == "cold"
    assert (run["kind"], run["repeat"], run["share_of_limit"] > 0) == ("offline", 1, True)
    assert "Share of the limit" in done.stdout


def test_later_questions_find_what_was_said(checkpoint: Path) -> None:
    options = DataOptions(num_prompts=3, turns=3, random_input=20, random_output=20, random_range_ratio=1.0)
    result = measure(checkpoint, load(options, Vocabulary(range(4, VOCAB_SIZE), lambda text: [])), [])
    assert result["successful_requests"] == 9
    assert result["total_input_tokens"] == 3 * (20 + 60 + 100)
    # Pages of 16: of 39 tokens that were computed 32 are found, of 79 there are 64.
    assert result["total_cached_tokens"] == 3 * (32 + 64)


def test_failures_end_with_exit_code_1(bench: Bench, checkpoint: Path) -> None:
    words = ["--num-prompts", "3", "--random-input", "300", "--random-output", "4", "--random-range", "1"]
    done = bench("offline", str(checkpoint), *words, "--warmup-requests", "0", "--max-total-tokens", "1024")
    assert done.returncode == 1
    assert "3 requests failed; the first one: " in done.stderr


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """The first answer is short; the second would take minutes."""
    path = make_checkpoint("llama", tmp_path / "long", max_position_embeddings=200_000)
    config = sources.configure(sources.from_call({"model_path": str(path), "max_total_tokens": 160_000}))
    engine, run = AsyncEngine.start(config, in_process=True), Run(lambda _: signal.raise_signal(signal.SIGINT))
    try:
        benchmark, samples = Offline(engine), [Sample((5, 6), 2), Sample((7, 8), 150_000)]
        run_until_interrupt(run, benchmark.measure(run, samples, Traffic(), [], flush=True))
        result = benchmark.result(run, Traffic(), {}, flush=True)
    finally:
        engine.close()
    assert (result["successful_requests"], result["total_output_tokens"], result["interrupted"]) == (1, 2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset-name", "x"], "--dataset-name x is unknown; use random, sharegpt"),
        (["--num-prompts", "0"], "--num-prompts must be at least 1, got 0."),
        (["--output-file", "/nowhere/x"], "--output-file /nowhere/x cannot be written"),
        (["--page-size", "x"], "--page-size"),
    ],
)
def test_mistakes_are_named(bench: Bench, words: list[str], message: str) -> None:
    done = bench("offline", *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
