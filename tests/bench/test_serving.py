from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl.bench import series
from sgl.bench.backends import BACKENDS
from sgl.bench.contamination import ContaminatedError
from sgl.bench.data import DataOptions, Vocabulary, load
from sgl.bench.limits import Yardstick
from sgl.bench.load import Run, Traffic
from sgl.bench.series import Line, Plan
from sgl.bench.serving import Server, Target
from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError, SglError
from tests.bench.commands import Bench
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
def fake(checkpoint: Path, faults: dict[int, str] | None = None, **fields: Any) -> Iterator[FakeServer]:
    with serve(FakeServer(str(checkpoint), faults, **fields)) as server:
        yield server


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


def test_command_prints_the_block_and_records_the_run(bench: Bench, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    with fake(checkpoint) as server:
        port = server.url.rpartition(":")[2]
        server.cached = 0
        words = ["--model-path", "m", f"--port={port}", "--num-prompt", "5", *SMALL, "--max-conc", "2", "--flush"]
        words += ["--request-rate", "1000", "--arrival", "gamma", "--slo", "ttft:60000,tpot:60000"]
        done = bench("serving", *words, "--warmup", "2", "--api-key", "secret", "--output-file", str(file))
    assert done.returncode == 0, done.stderr
    assert " Serving Benchmark Result " in done.stdout and "Mean TTFT (ms):" in done.stdout
    assert len(server.bodies) == 7 and server.flushed_after == [2]
    (line,) = file.read_text().splitlines()
    assert "secret" not in line
    run = json.loads(line)
    assert run.keys() >= KEYS
    assert (run["completed"], run["model"], run["max_concurrency"], run["request_rate"]) == (5, "m", 2, 1000.0)
    assert (run["cache_state"], run["good_requests"], run["flags"]["random_input"]) == ("cold", 5, 12)
    assert (run["kind"], run["schema"], run["data"]["name"], run["data"]["num_requests"]) == ("serving", 1, "random", 5)
    assert run["data"]["hash"] == run["dataset_hash"] and run["flags"]["slo"] == "ttft:60000,tpot:60000"


def test_failures_end_with_exit_code_1(bench: Bench, checkpoint: Path) -> None:
    with fake(checkpoint, {1: "500", 3: "500"}) as server:
        done = bench("serving", "--base-url", server.url, "--num-prompts", "4", *SMALL)
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


@pytest.fixture
def real_server(checkpoint: Path) -> Iterator[Live]:
    options = {"model_path": str(checkpoint), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    config = sources.configure(sources.from_call({**options, "max_total_tokens": 4096}))
    live = Live(AsyncEngine.start(config, in_process=True), config)
    yield live
    live.close()


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat"])
def test_a_real_server(checkpoint: Path, real_server: Live, backend: str) -> None:
    result = measure(real_server.url + "/v1", backend)
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["model"] == str(checkpoint)
    assert result["total_output_tokens"] == 6 * 7
    if backend != "sglang-oai-chat":
        assert result["total_input_tokens"] == 6 * 12


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_real_server_tells_all_that_must_be_known(real_server: Live, state: str) -> None:
    options = DataOptions(num_prompts=3, turns=2, random_input=40, random_output=6, random_range_ratio=1.0)
    plan = Plan(options, cache_state=state, repeats=2, warmup_requests=2)
    lines = lines_of(real_server, plan)
    assert [line.notes for line in lines] == [[], []]
    for line in lines:
        assert line.figures["completed"] == 6 and line.share is not None and line.share.floor.seconds > 0
        assert line.figures["total_cached_tokens"] > 0  # of the second questions, if the first ones found nothing
        assert [turn["completed"] for turn in line.figures["turns"]] == [3, 3]


def test_a_real_server_with_other_guests_is_refused(real_server: Live) -> None:
    connected = Server.connect(Target("sglang", real_server.url))
    plan = plan_of(2)
    body = {"text": "x", "sampling_params": {"max_new_tokens": 1}}

    def guest(total: int) -> Run:
        return Run(
            lambda _: httpx.post(f"{real_server.url}/generate", json=body, timeout=60).raise_for_status() and None
        )

    with pytest.raises(ContaminatedError, match=r"it took 4 requests, 2 of them ours"):
        list(series.measure(connected, plan, Vocabulary.of(connected.tokenizer), guest))


def plan_of(count: int = 4, cache_state: str = "any", **fields: Any) -> Plan:
    options = DataOptions(num_prompts=count, random_input=12, random_output=7, random_range_ratio=1.0)
    return Plan(options, cache_state=cache_state, warmup_requests=1, **fields)


def lines_of(server: FakeServer | Live, plan: Plan) -> list[Line]:
    connected = Server.connect(Target("sglang", server.url))
    plan = plan.against(Yardstick(connected.facts.cost, {"bf16": 1e9, "fp32": 1e12}, connected.facts.chunk or 64))
    return list(series.measure(connected, plan, Vocabulary.of(connected.tokenizer), lambda total: Run()))


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)


def test_a_server_that_is_ours_alone_is_reported_with_its_limit(checkpoint: Path) -> None:
    with fake(checkpoint, ours=True) as server:
        (line,) = lines_of(server, plan_of())
    assert line.notes == [] and line.share is not None
    assert line.figures["share_of_limit"] == line.share.value > 0
    assert line.share.floor.bound in ("memory", "bf16 GEMM")


def test_what_another_server_does_not_say_is_noted(checkpoint: Path) -> None:
    with fake(checkpoint) as server:
        (line,) = lines_of(server, plan_of())
    assert line.notes == ["The server does not say whether it worked for others."] and line.share is None
    assert "share_of_limit" not in line.figures


def test_a_busy_server_is_not_measured(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.serving._IDLE_TIMEOUT_S", 0.0)
    with fake(checkpoint, ours=True) as server:
        server.num_others = 3
        with pytest.raises(ContaminatedError, match="is busy with 3 requests of others; nothing was measured"):
            lines_of(server, plan_of())
    assert len(server.bodies) == 1  # the warm-up


def test_a_server_that_works_for_others_too_is_refused(checkpoint: Path) -> None:
    with fake(checkpoint, ours=True) as server:
        server.per_request = 2
        with pytest.raises(ContaminatedError, match=r"it took 8 requests, 4 of them ours"):
            lines_of(server, plan_of())


def test_a_server_that_changes_its_model_is_refused(checkpoint: Path) -> None:
    with fake(checkpoint) as server:
        server.changed_after = 3
        with pytest.raises(ContaminatedError, match="model_path was model and is other"):
            lines_of(server, plan_of())


@pytest.mark.parametrize(("state", "cached"), [("cold", 1), ("warm", 0)])
def test_a_cache_in_another_state_is_refused_and_nothing_recorded(
    bench: Bench, checkpoint: Path, tmp_path: Path, state: str, cached: int
) -> None:
    file = tmp_path / "runs.jsonl"
    with fake(checkpoint, cached=cached) as server:
        words = ["--base-url", server.url, "--num-prompts", "3", *SMALL, "--cache-state", state]
        done = bench("serving", *words, "--output-file", str(file))
    assert done.returncode == 2 and f"The prefix cache was not {state}" in done.stderr
    assert not file.exists() and "Result" not in done.stdout


def test_a_warm_cache_is_filled_with_the_prompts(checkpoint: Path) -> None:
    with fake(checkpoint, cached=8) as server:
        (line,) = lines_of(server, plan_of(3, "warm"))
    prompts = [tuple(body["input_ids"]) for body in server.bodies]
    assert len(prompts) == 1 + 3 + 3 and set(prompts[:4]) > set(prompts[4:])
    lengths = [body["sampling_params"]["max_new_tokens"] for body in server.bodies[:4]]
    assert sorted(lengths) == [1, 1, 1, 7]  # and a request that only warms up
    assert line.figures["cache_state"] == "warm" and server.flushed_after == []


def test_repeats_have_new_prompts_and_a_sweep_the_same_ones(checkpoint: Path) -> None:
    traffics = (Traffic(max_concurrency=1), Traffic(max_concurrency=2))
    with fake(checkpoint, cached=0) as server:
        lines = lines_of(server, plan_of(2, "cold", traffics=traffics, repeats=3))
    assert [line.repeat for line in lines] == [1, 2, 3, 1, 2, 3]
    assert [line.summary is not None for line in lines] == [False, False, True] * 2
    assert server.flushed_after == [1 + 3 * i for i in range(6)]
    hashes = [line.data.hash for line in lines]
    assert hashes[:3] == hashes[3:] and len(set(hashes)) == 3
    summary = lines[2].summary
    assert summary is not None and summary["repeats"] == 3 and summary["confidence"] == pytest.approx(0.75)
    values = sorted(line.figures["median_ttft_ms"] for line in lines[:3])
    assert summary["medians"]["median_ttft_ms"] == values[1]
    assert summary["intervals"]["median_ttft_ms"] == [values[0], values[2]]


def test_no_prompt_is_sent_twice_to_a_cache_that_nobody_looks_after(checkpoint: Path) -> None:
    traffics = (Traffic(max_concurrency=1), Traffic(max_concurrency=2))
    with fake(checkpoint) as server:
        lines = lines_of(server, plan_of(2, traffics=traffics, repeats=2))
    assert len({line.data.hash for line in lines}) == 4


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "openai", "sglang-oai-chat"])
def test_later_questions_carry_what_was_said(checkpoint: Path, backend: str) -> None:
    with fake(checkpoint) as server:
        connected = Server.connect(Target(backend, server.url))
        options = DataOptions(num_prompts=2, turns=3, random_input=6, random_output=4, random_range_ratio=1.0)
        samples = load(options, Vocabulary.of(connected.tokenizer))
        run, traffic = Run(), Traffic(max_concurrency=1)
        asyncio.run(connected.measure(run, samples, traffic, (), flush=False))
        result = connected.result(run, traffic, {}, flush=False)
    assert result["completed"] == 6 and [turn["turn"] for turn in result["turns"]] == [1, 2, 3]
    assert all(turn["completed"] == 2 and turn["median_ttft_ms"] > 0 for turn in result["turns"])
    decode = connected.tokenizer.decode
    first, second = samples[0], samples[0].later[0]
    said = [decode(first.input_ids), "xxxx", decode(second.input_ids)]
    answer = connected.tokenizer.encode("xxxx", add_special_tokens=False)
    wanted: dict[str, Any] = {
        "sglang": {"input_ids": [*first.input_ids, *answer, *second.input_ids]},
        "sglang-oai": {"prompt": [*first.input_ids, *answer, *second.input_ids]},
        "openai": {"prompt": "".join(said)},
        "sglang-oai-chat": {
            "messages": [
                {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)
            ]
        },
    }
    assert any(body.items() >= wanted[backend].items() for body in server.bodies)


def test_a_sweep_prints_a_block_and_a_line_for_each(bench: Bench, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    with fake(checkpoint) as server:
        words = ["--base-url", server.url, "--num-prompts", "2", *SMALL, "--max-concurrency", "1,2"]
        done = bench("serving", *words, "--request-rate", "500,inf", "--output-file", str(file))
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(run["request_rate"], run["max_concurrency"]) for run in runs] == [
        *((500.0, 1), (500.0, 2), ("inf", 1), ("inf", 2))
    ]
    assert done.stdout.count("Serving Benchmark Result") == 4 and "at once" in done.stdout


def test_a_trace_is_recorded_as_one(bench: Bench, checkpoint: Path, tmp_path: Path) -> None:
    file, trace = tmp_path / "runs.jsonl", tmp_path / "trace.jsonl"
    lines = [{"prompt": [5 + i], "output_len": 2, "timestamp_ms": 100 * i} for i in range(3)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with fake(checkpoint) as server:
        words = ["--base-url", server.url, "--dataset-name", "jsonl", "--dataset-path", str(trace)]
        done = bench("serving", *words, "--trace-speed", "10", "--output-file", str(file))
        assert bench("serving", *words, "--request-rate", "inf", "--output-file", str(file)).returncode == 0
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(run["request_rate"], run["arrival"]) for run in runs] == [("trace", "trace"), ("inf", "at once")]
    assert runs[0]["duration"] >= 0.02 and runs[0]["trace_speed"] == 10.0


def test_the_least_share_of_the_limit_is_a_gate(bench: Bench, checkpoint: Path) -> None:
    with fake(checkpoint, ours=True) as server:
        words = ["--base-url", server.url, "--num-prompts", "2", *SMALL]
        done = bench("serving", *words, "--min-limit", "0.99")
        assert done.returncode == 1, done.stderr
        assert re.search(r"--min-limit: run reached [\d.]+% of its limit, less than 99%\.", done.stderr)
        assert bench("serving", *words, "--min-limit", "run=0.00000001").returncode == 0
    with fake(checkpoint) as server:
        done = bench("serving", "--base-url", server.url, "--min-limit", "0.5")
        assert done.returncode == 2 and "--min-limit needs a server of sgl on this machine." in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "trt"], "--backend trt is unknown; use sglang, "),
        (["--base-url", "localhost"], "--base-url must be like http://127.0.0.1:30000, got 'localhost'."),
        (["--base-url", "http://x", "--port", "1"], "leave out --host and --port"),
        (["--port", "9"], "No server answers at http://127.0.0.1:9; start one with `sgl serve`"),
        (["--slo", "speed:1"], "--slo must be like ttft:500,tpot:50"),
        (["--request-rate", "-1"], "--request-rate must be greater than 0"),
        (["--request-rate", "1,x"], "--request-rate takes numbers separated by commas, or inf, got 'x'."),
        (["--max-concurrency", "1,0"], "--max-concurrency must be at least 1"),
        (["--cache-state", "hot"], "--cache-state hot is unknown; use cold, warm, any"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0."),
        (["--trace-speed", "0"], "--trace-speed must be greater than 0"),
        (["--min-limit", "decode=0.5"], "--min-limit must be a share like 0.7, or run=0.7, got 'decode=0.5'."),
        (["--dataset-name", "jsonl", "--dataset-path", "x", "--repeats", "2"], "pass --cache-state cold or warm"),
        (["--dataset-name", "x"], "--dataset-name x is unknown"),
        (["--output-file", "/nowhere/x"], "--output-file /nowhere/x cannot be written: No such file or directory."),
        (["--random", "3"], "--random is ambiguous"),
    ],
)
def test_mistakes_are_named(bench: Bench, words: list[str], message: str) -> None:
    done = bench("serving", *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_a_wrong_key_and_a_missing_tokenizer_are_named(tmp_path: Path) -> None:
    with fake(tmp_path) as server:
        with pytest.raises(SglError, match="refused the key: pass --api-key"):
            Server.connect(Target("sglang", server.url, api_key="wrong"))
        with pytest.raises(SglError, match="is not ready: HTTP status 503: The model is still loading"):
            Server.connect(Target("sglang", server.url, api_key="early"))
        with pytest.raises(ConfigError, match="cannot be loaded here; pass --tokenizer"):
            Server.connect(Target("sglang", server.url))
