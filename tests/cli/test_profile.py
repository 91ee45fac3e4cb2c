"""`sgl profile report`, `diff` and `sgl explain` as a user sees them; what they say is tested in tests/profiles."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from sgl.cli.explain_request import explain
from sgl.cli.profile_diff import diff
from sgl.cli.profile_report import report
from sgl.engine.api.explanation import Explanations, Listed, Listing
from sgl.engine.base.errors import ConfigError, SglError
from sgl.profiles.ledgers import Asked, as_observed
from tests.profiles.test_page import explanation
from tests.profiles.traces import step, write


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "a.trace.json.gz", [*step(0.0), *step(150.0)], 2)


def test_a_report_as_tables_and_as_a_page(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ceilings = trace.with_name("machine.json")
    ceilings.write_text('{"read_bandwidth": 1e9, "matmul_bf16": 1e12}')
    report(trace=str(trace), machine=str(ceilings))
    told = capsys.readouterr().out
    for part in ("2 steps", "Phases", "Kernels", "memory", "Largest opportunities", "1. "):
        assert part in told
    page = trace.with_name("page.html")
    report(trace=str(trace), machine="none", output=str(page))
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(ConfigError, match="--machine"):
        report(trace=str(trace), machine=str(trace))
    with pytest.raises(ConfigError, match="--output"):
        report(trace=str(trace), machine="none", output=str(trace / "page.html"))


def test_a_narrow_terminal_has_the_first_columns(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    report(trace=str(trace), machine="none")
    assert "bound by" in capsys.readouterr().out, "a pipe has them all"
    monkeypatch.setenv("COLUMNS", "40")
    report(trace=str(trace), machine="none")
    told = capsys.readouterr().out
    assert "calls" in told and "share" in told and "bound by" not in told and "GFLOP" not in told
    rows = [line for line in told.splitlines() if line.startswith(("qkv", "forward"))]
    assert rows and max(map(len, rows)) <= 40


def test_two_traces(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff(str(trace), str(trace))
    assert "+0.0%" in capsys.readouterr().out
    page = trace.with_name("diff.html")
    diff(str(trace), str(trace), output=str(page))
    assert "Two profiles" in page.read_text()


FORMS = {
    "native": b'{"text": "a", "meta_info": {"id": "<r>"}}',
    "native list": b'[{"text": "a", "meta_info": {"id": "<r>"}}, {}]',
    "openai": b'{"id": "<r>", "choices": []}',
    "stream": b'data: {"id": "<r>", "choices": []}\n\ndata: [DONE]\n\n',
    "responses stream": b'event: response.created\ndata: {"type": "x", "response": {"id": "<r>"}}\n\n',
    "messages stream": b'event: message_start\ndata: {"type": "message_start", "message": {"id": "<r>"}}\n\n',
    "other": b'{"success": true}',
    "text": b"Cache flushed.",
}
"""Answers as the APIs give them, and two that name no request."""


class _Handler(BaseHTTPRequestHandler):
    """A server that knows one request, and asks for a key."""

    def do_GET(self) -> None:
        found = explanation()
        listed = Listed("<r>", "stop", 40.0, 20.0, 5, 3, "decode", 30.0, 25.0)
        bodies = {
            "/requests/%3Cr%3E": Explanations("<r>", [found]),
            "/requests?slowest=3": Listing(1, [listed]),
            "/requests/other": {"answers": "?"},
        }
        body = msgspec.json.encode(bodies.get(self.path, {"error": {"message": "There is no ledger."}}))
        allowed = self.headers["authorization"] == "Bearer k"
        self.send_response(200 if self.path in bodies and allowed else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answers with the form that the body names."""
        asked = msgspec.json.decode(self.rfile.read(int(self.headers["content-length"])))
        body = FORMS[asked["form"]]
        time.sleep(0.06)  # longer than its ledger says
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_request_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as url:
        explain("<r>", url, api_key="k")
        told = capsys.readouterr().out
        for part in ("queue", "22.5%", "█", "Alone it would have taken about 25 ms", "chunk of <b> (512 tokens)"):
            assert part in told
        explain("", url, slowest=3, api_key="k")
        assert "decode 30.0 ms" in capsys.readouterr().out
        explain("<r>", url, as_json=True, api_key="k")
        assert msgspec.json.decode(capsys.readouterr().out)["rid"] == "<r>"
        for name in ("r.html", "r.svg"):
            explain("<r>", url, output=str(tmp_path / name), api_key="k")
            assert "<svg" in (tmp_path / name).read_text()
        with pytest.raises(SglError, match="There is no ledger"):
            explain("unknown", url, api_key="k")
        with pytest.raises(SglError, match="no server of this version"):
            explain("other", url, api_key="k")


@pytest.mark.parametrize("form", FORMS)
def test_a_request_of_ones_own_has_the_network_as_a_part(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tmp_path / "body.json"
    body.write_bytes(msgspec.json.encode({"form": form}))
    with serving() as url:
        if form in ("other", "text"):
            with pytest.raises(SglError, match="has no id"):
                explain(url=url, send=str(body), api_key="k")
            return
        explain(url=url, send=str(body), api_key="k")
        assert "network" in capsys.readouterr().out
        explain(url=url, send=str(body), api_key="k", as_json=True)
    [found] = msgspec.json.decode(capsys.readouterr().out)
    assert abs(sum(found["parts"].values()) - found["total_ms"]) < 1e-6


def test_what_a_client_waited_is_the_sum_of_the_parts() -> None:
    """40 ms at the server; the client waited for 50, of which 3 were before."""
    found = as_observed(explanation(), Asked("<r>", explanation().received - 0.003, 50.0))
    assert found.total_ms == 50 and found.parts["network"] == pytest.approx(10)
    assert sum(found.parts.values()) == pytest.approx(50) and found.first_token_ms == pytest.approx(23)
    ends = [0.0, *(piece.begin_ms + piece.ms for piece in found.pieces)]
    assert [piece.begin_ms for piece in found.pieces] == pytest.approx(ends[:-1]) and ends[-1] == pytest.approx(50)
    assert [piece.ms for piece in found.pieces if piece.part == "network"] == pytest.approx([3, 7])
    assert found.alone.total_ms == pytest.approx(35), "alone it would have crossed the network, too"
    faster = as_observed(explanation(), Asked("<r>", explanation().received, 39.0))  # clocks of two machines
    assert faster.total_ms == 40 and faster.parts["network"] == 0


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("[1]")
    for name in ("list", "nothing"):
        with pytest.raises(ConfigError, match="--send"):
            explain(send=str(tmp_path / name))
    with pytest.raises(ConfigError, match="Name a request"):
        explain()
    with pytest.raises(SglError, match="No server answers at"):
        explain("x", "http://127.0.0.1:9")
