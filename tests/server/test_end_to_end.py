"""The server over the real engine and a tiny random model: bad input, vanishing clients, and the account of pages."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.server.live import Live, Process, post, until
from tests.server.served import parse_events

CONTEXT_LEN = 256
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("server") / "tiny")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Live]:
    options = {"model_path": str(checkpoint), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    config = sources.configure(sources.from_call({**options, "max_total_tokens": 4096, "drain_timeout_s": 1.0}))
    server = Live(AsyncEngine.start(config, in_process=True), config)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def http(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def no_page_is_lost(server: Live) -> Iterator[None]:
    """After every test all pages are free or cached."""
    yield

    def is_settled() -> bool:
        pages = httpx.get(f"{server.url}/get_server_info", timeout=60).json()["pages"]
        return bool(pages["free"] + pages["cached"] == pages["total"])

    until(is_settled)
    assert server.engine.num_active == 0
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def _stream_text(http: httpx.Client, path: str, body: dict[str, Any], read: Any) -> dict[int, str]:
    """By index, what a stream says."""
    texts: dict[int, str] = {}
    for event in parse_events(http.post(path, json={**body, "stream": True}).text):
        read(texts, event)
    return texts


def _read_native(texts: dict[int, str], event: Any) -> None:
    texts[event.get("index", 0)] = event["text"]


def _read_completion(texts: dict[int, str], event: Any) -> None:
    for choice in event["choices"]:
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]


def _read_chat(texts: dict[int, str], event: Any) -> None:
    for choice in event["choices"]:
        texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")


@pytest.mark.parametrize("stop", [None, ["e", "qu", "\n"]])
@pytest.mark.parametrize("n", [1, 2])
def test_streams_say_what_whole_answers_say(http: httpx.Client, n: int, stop: Any) -> None:
    params = {"max_new_tokens": 40, "n": n, "stop": stop, "seed": 3, "ignore_eos": True}
    native = {"text": ["Paris is", "The quick"], "sampling_params": params}
    whole = [output["text"] for output in http.post("/generate", json=native).json()]
    assert _stream_text(http, "/generate", native, _read_native) == dict(enumerate(whole))

    fields = {"max_tokens": 40, "n": n, "stop": stop, "seed": 3, "ignore_eos": True, "temperature": 1.0}
    completion = {"prompt": ["Paris is", "The quick"], **fields}
    choices = http.post("/v1/completions", json=completion).json()["choices"]
    assert [choice["text"] for choice in choices] == whole
    assert _stream_text(http, "/v1/completions", completion, _read_completion) == dict(enumerate(whole))

    chat = {"messages": HI, **fields}
    answers = [c["message"]["content"] for c in http.post("/v1/chat/completions", json=chat).json()["choices"]]
    assert _stream_text(http, "/v1/chat/completions", chat, _read_chat) == dict(enumerate(answers))


def test_prefixes_are_cached_until_flushed(http: httpx.Client) -> None:
    body = {"text": "Once upon a time there was a small model. " * 3, "sampling_params": {"max_new_tokens": 1}}

    def ask() -> Any:
        return http.post("/generate", json=body).json()["meta_info"]

    http.post("/flush_cache")
    first, second = ask(), ask()
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == (second["prompt_tokens"] - 1) // 16 * 16 > 0
    assert http.post("/flush_cache").text.startswith("Cache flushed.\n")
    assert ask()["cached_tokens"] == 0


def test_logprobs_add_up(http: httpx.Client) -> None:
    body = {
        "text": "Paris is",
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 3,
        "sampling_params": {"temperature": 0, "max_new_tokens": 4},
    }
    meta = http.post("/generate", json=body).json()["meta_info"]
    assert [entry[0] is None for entry in meta["input_token_logprobs"]] == [True] + [False] * (
        meta["prompt_tokens"] - 1
    )
    for taken, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True):
        assert taken[:2] == top[0][:2]  # greedy takes the likeliest
        assert [entry[0] for entry in top] == sorted((entry[0] for entry in top), reverse=True)


def test_no_new_tokens(http: httpx.Client) -> None:
    output = http.post("/generate", json={"text": "Paris is", "sampling_params": {"max_new_tokens": 0}}).json()
    assert (output["text"], output["meta_info"]["completion_tokens"]) == ("", 0)
    scored = http.post("/v1/completions", json={"prompt": "Paris is", "max_tokens": 0, "echo": True, "logprobs": 1})
    assert scored.json()["choices"][0]["text"] == "Paris is"
    assert scored.json()["choices"][0]["logprobs"]["token_logprobs"][0] is None


_BAD: list[tuple[str, Any]] = [
    ("a prompt longer than the context", {"text": "x " * 400}),
    ("token ids beyond the context", {"input_ids": [5] * (CONTEXT_LEN + 1)}),
    ("more tokens than the context leaves", {"text": "a", "sampling_params": {"max_new_tokens": CONTEXT_LEN}}),
    ("an empty prompt", {"text": ""}),
    ("an empty list", {"text": []}),
    ("no token ids", {"input_ids": []}),
    ("no prompt", {}),
    ("NUL characters", {"text": "a\0b"}),
    ("ids out of range", {"input_ids": [VOCAB_SIZE]}),
    ("negative ids", {"input_ids": [-1]}),
    ("huge ids", {"input_ids": [2**70]}),
    ("negative numbers", {"text": "a", "sampling_params": {"temperature": -1}}),
    ("huge numbers", {"text": "a", "sampling_params": {"top_k": 10**300}}),
    ("huge counts", {"text": "a", "sampling_params": {"n": 10**9}}),
    ("wrong types", {"text": {"a": 1}}),
    ("wrong types inside", {"text": "a", "sampling_params": {"stop": [1]}}),
    ("unknown fields", {"text": "a", "sampling_params": {"temprature": 1}}),
    ("grammars", {"text": "a", "sampling_params": {"regex": "a("}}),
    ("a lone surrogate", b'{"text": "\\ud800"}'),
    ("raw NUL bytes", b'{"text": "a\x00b"}'),
    ("invalid UTF-8", b'{"text": "\xff"}'),
    ("malformed JSON", b'{"text": "a"'),
    ("infinity", b'{"text": "a", "sampling_params": {"temperature": 1e999}}'),
    ("not a number", b'{"text": "a", "sampling_params": {"temperature": NaN}}'),
    ("deep nesting", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("no body", b""),
]


@pytest.mark.parametrize(("what", "body"), _BAD, ids=[what for what, _ in _BAD])
def test_bad_requests_are_refused_with_the_reason(http: httpx.Client, what: str, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post("/generate", content=content)
    assert response.status_code == 400, what
    assert len(response.json()["error"]["message"]) > 10
    assert http.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}}).status_code == 200


def test_a_body_of_100_mb(http: httpx.Client) -> None:
    response = http.post("/generate", content=b"x" * 100 * 2**20)
    assert response.status_code == 413


def test_clients_that_vanish_leave_nothing_behind(server: Live, http: httpx.Client) -> None:
    """Whole and streamed, single and in lists, cut off at different times, among requests that go on."""
    long = {"max_new_tokens": 200, "ignore_eos": True}
    healthy = {"text": "The quick brown fox", "sampling_params": {**long, "temperature": 0}}
    expected = http.post("/generate", json=healthy).json()["text"]

    def vanish(i: int) -> None:
        body = {"text": ["Once upon a time " * (i % 5 + 1), "Paris"], "sampling_params": long, "stream": i % 2 == 0}
        with post(server.port, "/generate", body) as sock:
            sock.settimeout(0.01 * i)
            try:
                sock.recv(1)
            except TimeoutError:
                return

    with ThreadPoolExecutor(8) as pool:
        steady = [pool.submit(http.post, "/generate", json=healthy) for _ in range(2)]
        list(pool.map(vanish, range(1, 17)))
        assert [request.result().json()["text"] for request in steady] == [expected, expected]


def test_the_whole_program(checkpoint: Path) -> None:
    options = ["--device", "cpu", "--dtype", "float32", "--cpu-threads", "1", "--max-total-tokens", "2048"]
    arguments = ["-m", "sgl", "serve", "--model-path", str(checkpoint), "--port", "0", *options]
    begun_s = time.monotonic()
    with closing(Process(*arguments)) as program:
        url = program.wait_for(r" running on (\S+)")[1]
        program.wait_for("ready to roll")
        body = {"messages": HI, "max_tokens": 5, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 5
        startup = httpx.get(f"{url}/get_server_info", timeout=60).json()["startup"]
        total_s = startup.pop("total")
        own = [
            "command line",
            "engine process",
            "imports",
            "kernels",
            "weights",
            "KV cache",
            "canary",
            "front",
            "warm-up",
        ]
        assert list(startup) == own
        assert min(startup.values()) >= 0 and sum(startup.values()) == pytest.approx(total_s)
        assert total_s <= time.monotonic() - begun_s + 0.02  # the kernel counts hundredths of a second
        assert program.wait_for(r"Ready in (\S+) s: command line ")[1] == f"{total_s:.2f}"
        assert "libtorch" not in Path(f"/proc/{program.popen.pid}/maps").read_text()
        program.popen.send_signal(signal.SIGTERM)
        assert program.wait() == 0


def test_the_program_without_its_engine(checkpoint: Path) -> None:
    options = ["--device", "cpu", "--dtype", "float32", "--cpu-threads", "1", "--max-total-tokens", "2048"]
    arguments = ["-m", "sgl", "serve", "--model-path", str(checkpoint), "--port", "0", *options]
    with closing(Process(*arguments)) as program:
        program.wait_for("ready to roll")
        tasks = Path(f"/proc/{program.popen.pid}/task").iterdir()
        (engine,) = (pid for task in tasks for pid in (task / "children").read_text().split())
        os.kill(int(engine), signal.SIGKILL)
        assert program.wait() == 1  # by itself: whoever supervises it starts another one
        assert any("The engine process was killed by SIGKILL" in line for line in program.log)
        assert program.log[-1] == "Error: The engine has stopped; see its log for the reason."
