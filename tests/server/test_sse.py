"""What becomes of the engine's work when clients go away, on real sockets."""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

import httpx
import pytest

from tests.server.live import LiveEcho, live, post, read_all, until
from tests.server.served import parse_events

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"text": "x" * 500, "sampling_params": {"max_new_tokens": 400}}),
    ("/generate", {"text": ["x" * 500, "y" * 500], "sampling_params": {"max_new_tokens": 400, "n": 2}}),
    ("/v1/completions", {"prompt": "x" * 500, "max_tokens": 400}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 500}]}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_disconnect_aborts(path: str, body: dict[str, Any], stream: bool) -> None:
    num_running = 4 if isinstance(body.get("text"), list) else 1
    with live(hold=True) as server:
        sock = post(server.port, path, {**body, "stream": stream})
        until(lambda: len(server.client.running) == num_running)
        if stream:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.close()
        until(lambda: not server.client.running)
        assert len(server.client.aborted) == num_running
        assert server.engine.num_active == 0
        server.client.limit = lambda: math.inf
        _still_serves(server)


def test_a_disconnect_in_the_middle_of_the_body_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with live() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"text": "a')
        _still_serves(server)
        assert len(server.client.received) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_does_not_read_is_given_fewer_and_larger_events() -> None:
    prompts = [letter * 900 for letter in "abcdefgh"]
    body = {"text": prompts, "stream": True, "sampling_params": {"max_new_tokens": 900}}
    with live() as server:
        with post(server.port, "/generate", body, "Connection: close\r\n", receive_bytes=4096) as sock:
            until(lambda: len(server.client.received) == len(prompts) and not server.client.running)
            events = parse_events(_unchunked(read_all(sock)))
        assert {event["index"]: event["text"] for event in events} == dict(enumerate(prompts))
        assert len(events) < 900 * len(prompts)


def _unchunked(raw: bytes) -> str:
    """The body of a chunked answer."""
    _, _, rest = raw.partition(b"\r\n\r\n")
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(parts).decode()


def test_streams_are_not_to_be_cached_or_held_back() -> None:
    with (
        live() as server,
        httpx.stream("POST", f"{server.url}/generate", json={"text": "a", "stream": True}, timeout=60) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers
        answer.read()


def _still_serves(server: LiveEcho) -> None:
    answer = httpx.post(f"{server.url}/generate", json={"text": "ok"}, timeout=60)
    assert answer.json()["text"] == "ok"
