"""`sgl profile report`, `diff` and `sgl explain` as a user sees them; what they say is tested in tests/profiles."""

from __future__ import annotations

import threading
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


def test_two_traces(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff(str(trace), str(trace))
    assert "+0.0%" in capsys.readouterr().out
    page = trace.with_name("diff.html")
    diff(str(trace), str(trace), output=str(page))
    assert "Two profiles" in page.read_text()


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


def test_mistakes_are_sentences() -> None:
    with pytest.raises(ConfigError, match="Name a request"):
        explain()
    with pytest.raises(SglError, match="cannot be reached"):
        explain("x", "http://127.0.0.1:9")
