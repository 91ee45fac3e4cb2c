from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.backends import BACKENDS
from sgl.bench.data import DataOptions, Vocabulary, load
from sgl.bench.load import Run, Traffic
from sgl.bench.serving import Server, Target
from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError, SglError
from tests.bench.fake_server import CHUNK, FakeServer, serve
from tests.models.checkpoints import make_checkpoint
from tests.server.live import Live, until

SMALL = ["--random-input", "12", "--random-output", "7", "--random-range-ratio", "1"]
KEYS = {
    *("backend", "dataset_name", "request_rate", "max_concurrency", "duration", "completed", "concurrency"),
    *("total_input_tokens", "total_output_tokens", "total_output_tokens_retokenized"),
    *("request_throughput", "input_throughput", "output_throughput"),
    *(f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("e2e_latency", "ttft", "tpot", "itl")),
    *("sgl_version", "flags", "seed", "dataset_hash", "machine", "versions"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("serving") / "tiny")


@contextmanager
def fake(checkpoint: Path, faults: dict[int, str] | None = None) -> Iterator[FakeServer]:
    with serve(FakeServer(str(checkpoint), faults)) as server:
        yield server


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl", "bench", "serving", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def measure(url: str, backend: str, count: int = 6, **fields: Any) -> dict[str, Any]:
    """The result of a few requests without warm-up."""
    server = Server.connect(Target(backend, url, **fields))
    options = DataOptions(num_prompts=count, random_input=12, random_output=7, random_range_ratio=1.0)
    samples = load(options, Vocabulary.of(server.tokenizer))
    run, traffic = Run(), Traffic(max_concurrency=1)
    asyncio.run(server.measure(run, samples, traffic, (), flush=False))
    return server.result(run, traffic, {}, flush=False)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_every_backend_counts_what_the_server_says(checkpoint: Path, backend: str) -> None:
    with fake(checkpoint) as server:
        result = measure(server.url, backend)
    prompts = [body.get("input_ids") or body.get("prompt") or body["messages"][0]["content"] for body in server.bodies]
    assert result["completed"] == 6 and result["failed"] == 0
    assert result["total_input_tokens"] == sum(map(len, prompts))
    assert result["total_output_tokens"] == 6 * 7
    assert result["total_output_tokens_retokenized"] > 0
    assert result["total_cached_tokens"] == (6 if BACKENDS[backend].path == "/generate" else None)
    assert isinstance(prompts[0], str) == BACKENDS[backend].sends_text
    assert 0 < result["mean_ttft_ms"] <= result["mean_e2e_latency_ms"]
    assert result["concurrency"] <= 1


def test_chunks_are_counted_where_the_server_counts_them(checkpoint: Path) -> None:
    """Three gaps between four chunks are the gaps of six tokens, if it is known that they had two each."""
    gaps = {}
    with fake(checkpoint) as server:
        for backend in ("sglang", "vllm", "sglang-oai"):
            connected = Server.connect(Target(backend, server.url))
            samples = load(
                DataOptions(num_prompts=1, random_input=4, random_output=4 * CHUNK, random_range_ratio=1.0),
                Vocabulary.of(connected.tokenizer),
            )
            run = Run()
            asyncio.run(connected.measure(run, samples, Traffic(), (), flush=False))
            gaps[backend] = len(run.outcomes[0].itl_s)
    assert gaps == {"sglang": 3 * CHUNK, "vllm": 3 * CHUNK, "sglang-oai": 3}


def test_eos_is_ignored_only_where_the_server_knows_how(checkpoint: Path) -> None:
    with fake(checkpoint) as server:
        for backend in ("sglang-oai", "openai"):
            measure(server.url, backend, 1)
        measure(server.url, "sglang", 1, ignore_eos=False)
    assert [body.get("ignore_eos") for body in server.bodies[:2]] == [True, None]
    assert server.bodies[2]["sampling_params"]["ignore_eos"] is False


@pytest.mark.parametrize(
    ("backend", "fault", "message"),
    [
        ("sglang", "500", "HTTP status 500: The engine has stopped."),
        ("sglang", "error", "The server broke off the answer: The request was preempted for good."),
        ("sglang", "drop", "The connection broke off: the answer is not complete."),
        ("sglang", "garbage", "The server sent something that is not a JSON object: {"),
        ("sglang", "foreign", 'The server\'s events are not those of --backend sglang: {"answer": "x"}'),
        ("openai", "silent", "The server did not say how many tokens it read and wrote (usage)."),
    ],
)
def test_a_failed_request_is_counted_and_named(checkpoint: Path, backend: str, fault: str, message: str) -> None:
    with fake(checkpoint, {2: fault, 4: fault}) as server:
        result = measure(server.url, backend)
    assert (result["completed"], result["failed"], result["first_error"]) == (4, 2, message)
    assert result["total_output_tokens"] == 4 * 7


def test_command_prints_the_block_and_records_the_run(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    with fake(checkpoint) as server:
        port = server.url.rpartition(":")[2]
        words = ["--model-path", "m", f"--port={port}", "--num-prompt", "5", *SMALL, "--max-conc", "2", "--flush"]
        words += ["--request-rate", "1000", "--arrival", "gamma", "--slo", "ttft:60000,tpot:60000"]
        done = bench(*words, "--warmup", "2", "--api-key", "secret", "--output-file", str(file))
    assert done.returncode == 0, done.stderr
    assert " Serving Benchmark Result " in done.stdout and "Mean TTFT (ms):" in done.stdout
    assert len(server.bodies) == 7 and server.flushed_after == [2]
    (line,) = file.read_text().splitlines()
    assert "secret" not in line
    run = json.loads(line)
    assert run.keys() >= KEYS
    assert (run["completed"], run["model"], run["max_concurrency"], run["request_rate"]) == (5, "m", 2, 1000.0)
    assert (run["cache_state"], run["good_requests"], run["flags"]["random_input"]) == ("flushed", 5, 12)


def test_failures_end_with_exit_code_1(checkpoint: Path) -> None:
    with fake(checkpoint, {1: "500", 3: "500"}) as server:
        done = bench("--base-url", server.url, "--num-prompts", "4", *SMALL)
    assert done.returncode == 1
    assert "Failed requests:                         2" in done.stdout
    assert "2 requests failed; the first one: HTTP status 500: The engine has stopped." in done.stderr


def test_ctrl_c_keeps_what_was_measured(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    with fake(checkpoint, {4: "hang"}) as server:  # after the warm-up and three others, one at a time
        words = ["--base-url", server.url, "--num-prompts", "9", *SMALL, "--max-concurrency", "1"]
        command = [sys.executable, "-m", "sgl", "bench", "serving", *words, "--output-file", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until(server.hanging.is_set)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Successful requests:                     3" in out and "Interrupted" in err
    run = json.loads(file.read_text())
    assert (run["completed"], run["interrupted"], run["failed"]) == (3, True, 0)


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat"])
def test_a_real_server(checkpoint: Path, backend: str) -> None:
    options = {"model_path": str(checkpoint), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    config = sources.configure(sources.from_call({**options, "max_total_tokens": 4096}))
    live = Live(AsyncEngine.start(config, in_process=True), config)
    try:
        result = measure(live.url + "/v1", backend)
    finally:
        live.close()
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["model"] == str(checkpoint)
    assert result["total_output_tokens"] == 6 * 7
    if backend != "sglang-oai-chat":
        assert result["total_input_tokens"] == 6 * 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "trt"], "--backend trt is unknown; use sglang, "),
        (["--base-url", "localhost"], "--base-url must be like http://127.0.0.1:30000, got 'localhost'."),
        (["--base-url", "http://x", "--port", "1"], "leave out --host and --port"),
        (["--port", "9"], "No server answers at http://127.0.0.1:9; start one with `sgl serve`"),
        (["--slo", "speed:1"], "--slo must be like ttft:500,tpot:50"),
        (["--request-rate", "-1"], "--request-rate must be greater than 0"),
        (["--dataset-name", "x"], "--dataset-name x is unknown"),
        (["--output-file", "/nowhere/x"], "--output-file /nowhere/x cannot be written: No such file or directory."),
        (["--random", "3"], "--random is ambiguous"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_a_wrong_key_and_a_missing_tokenizer_are_named(tmp_path: Path) -> None:
    with fake(tmp_path) as server:
        with pytest.raises(SglError, match="refused the key: pass --api-key"):
            Server.connect(Target("sglang", server.url, api_key="wrong"))
        with pytest.raises(ConfigError, match="cannot be loaded here; pass --tokenizer"):
            Server.connect(Target("sglang", server.url))
