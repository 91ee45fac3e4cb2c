"""The listening socket, malformed and oversized requests, starting and stopping, on real sockets and processes."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from sgl.engine.base.errors import ConfigError
from sgl.server.http import listen, url_of
from tests.server.live import Process, free_port, live, post, process, read_all, until
from tests.server.served import parse_events

LONG = {"text": "x" * 200, "sampling_params": {"max_new_tokens": 150}}


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on 203\.0\.113\.7:0"):
        listen("203.0.113.7", 0)
    with pytest.raises(ConfigError, match=r"Cannot listen on no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "[::1]")])
def test_urls(host: str, shown: str) -> None:
    with listen(host, 0) as sock:
        assert url_of(sock, host) == f"http://{shown}:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999999\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"GET /" + b"p" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_malformed_http_is_refused_and_nobody_else_notices(request_bytes: bytes) -> None:
    with live() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
            sock.sendall(request_bytes)
            assert read_all(sock)[:10] in (b"HTTP/1.1 4", b"")  # a reset can overtake the answer
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused_without_being_held(chunked: bool) -> None:
    megabyte = b"x" * 2**20
    with process(serve_max_body_bytes=2**20) as server:
        url = server.wait_for("ready at (.*)")[1]
        httpx.post(f"{url}/generate", json={"text": "warm"}, timeout=60)
        peak_kb = _peak_kb(server)
        content = (megabyte for _ in range(100)) if chunked else megabyte * 100
        answer = httpx.post(f"{url}/generate", content=content, timeout=60)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
        assert _peak_kb(server) - peak_kb < 16 * 1024
        assert httpx.post(f"{url}/generate", json={"text": "ok"}, timeout=60).json()["text"] == "ok"


def _peak_kb(server: Process) -> int:
    status = Path(f"/proc/{server.popen.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def test_from_start_to_drained_exit(tmp_path: Path) -> None:
    start, hold = tmp_path / "start", tmp_path / "hold"
    hold.touch()
    url = f"http://127.0.0.1:{(port := free_port())}"
    with process(start=str(start), hold=str(hold), serve_drain_timeout_s=60.0, serve_port=port) as server:
        early = until(lambda: _try_get(f"{url}/health"))
        assert early.status_code == 503
        assert early.headers["retry-after"] == "1"
        start.touch()
        assert server.wait_for("ready at (.*)")[1] == url
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200

        with post(port, "/generate", LONG) as whole, post(port, "/generate", {**LONG, "stream": True}) as streamed:
            first = streamed.recv(1000)
            assert first.startswith(b"HTTP/1.1 200")
            server.popen.send_signal(signal.SIGTERM)
            server.wait_for("Shutting down; 2 running requests")
            until(lambda: _is_refused(port))
            hold.unlink()
            assert (first + read_all(streamed)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert b'"completion_tokens":150' in read_all(whole)
        assert server.wait() == 0

    running, rolling, ready = (
        next(i for i, line in enumerate(server.log) if part in line)
        for part in (f" running on {url} ", "The server is fired up and ready to roll!", "ready at")
    )
    assert running < rolling < ready
    assert any('"POST /generate" 200' in line for line in server.log)


def test_what_outlasts_the_drain_is_aborted_and_told_so(tmp_path: Path) -> None:
    with process(hold=str(tmp_path), serve_drain_timeout_s=0.5) as server:
        port = int(server.wait_for(r"ready at .*:(\d+)")[1])
        with post(port, "/generate", {**LONG, "stream": True}) as sock:
            head = sock.recv(1000)
            server.popen.send_signal(signal.SIGTERM)
            body = (head + read_all(sock)).partition(b"\r\n\r\n")[2]
        assert server.wait() == 0
    text = re.sub(rb"[0-9a-f]+\r\n(.*?)\r\n", rb"\1", body, flags=re.DOTALL).decode()
    assert parse_events(text)[-1]["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_second_interrupt_exits_at_once(tmp_path: Path) -> None:
    with process(hold=str(tmp_path), serve_drain_timeout_s=60.0) as server:
        port = int(server.wait_for(r"ready at .*:(\d+)")[1])
        with post(port, "/generate", {**LONG, "stream": True}) as sock:
            sock.recv(1000)
            server.popen.send_signal(signal.SIGINT)
            server.wait_for("Shutting down; 1 running")
            server.popen.send_signal(signal.SIGINT)
            assert server.wait() == 130


def test_a_signal_while_the_engine_starts_ends_the_server(tmp_path: Path) -> None:
    with process(start=str(tmp_path / "never"), serve_port=(port := free_port())) as server:
        until(lambda: _try_get(f"http://127.0.0.1:{port}/health"))
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_an_engine_that_does_not_start_ends_the_server() -> None:
    with process(fail="The model is broken.") as server:
        assert server.wait() == 2
        assert server.log[-1] == "error: The model is broken."
        assert not any("Traceback" in line for line in server.log)


def test_quiet_levels_are_quiet() -> None:
    with process(observe_log_level="info", observe_log_level_http="warning") as server:
        url = server.wait_for("ready at (.*)")[1]
        httpx.get(f"{url}/health", timeout=60)
        server.popen.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not any("/health" in line for line in server.log)
    assert any("ready to roll" in line for line in server.log)


def _try_get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=60)
    except httpx.TransportError:
        return None


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False
