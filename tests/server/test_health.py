"""The probes of an orchestrator, in every phase of a server's life."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import httpx
import pytest

from sgl.engine.base.errors import EngineDiedError
from sgl.server.app import build_app
from sgl.server.state import ServerState
from tests.server.conftest import Serve
from tests.server.fake import make_config
from tests.server.live import free_port, live, post, process, until
from tests.server.served import Served

PROBES = ("/livez", "/readyz", "/startupz")


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_server_that_is_well(served: Served, path: str, method: str) -> None:
    response = served.request(method, path)
    assert (response.status_code, response.content) == (200, b"")


def test_probes_need_no_key(serve: Serve) -> None:
    served = serve(serve_api_key="k", serve_admin_api_key="a")
    assert [served.get(path).status_code for path in PROBES] == [200, 200, 200]


def test_while_the_model_loads() -> None:
    state = ServerState(make_config())
    state.phase = "the model is being loaded"

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(build_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get(path) for path in PROBES]

    live, ready, started = asyncio.run(ask())
    assert live.status_code == 200
    for response in (ready, started):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        error = response.json()["error"]
        assert error["code"] == "starting" and "the model is being loaded" in error["message"]


def test_an_engine_that_is_silent_or_dead_is_not_ready(serve: Serve) -> None:
    served = serve(serve_watchdog_timeout=30.0)
    served.engine.last_heartbeat_s = time.monotonic() - 40
    error = served.get("/readyz").json()["error"]
    assert error["code"] == "engine_stuck" and re.search(r" \d\d+ s", error["message"])
    served.client.die(EngineDiedError("killed"))
    assert served.get("/readyz").json()["error"]["code"] == "engine_dead"
    assert [served.get(path).status_code for path in PROBES] == [200, 503, 200]


def test_a_server_that_drains_is_not_ready() -> None:
    with live(hold=True, serve_drain_timeout_s=0.1) as server:
        long = {"text": "x" * 100, "sampling_params": {"max_new_tokens": 90}}
        with post(server.port, "/generate", long, "Connection: close\r\n"):
            until(lambda: server.client.running)
            server.state.is_draining = True
            assert httpx.get(f"{server.url}/readyz", timeout=60).json()["error"]["code"] == "draining"
            assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200


def test_the_whole_program_tells_how_far_it_is(tmp_path: Path) -> None:
    with process(start=str(tmp_path / "start"), serve_port=(port := free_port())) as server:
        until(lambda: _status(port, "/livez") == 200)
        assert _status(port, "/startupz") == _status(port, "/readyz") == 503
        (tmp_path / "start").touch()
        server.wait_for("ready at")
        assert _status(port, "/startupz") == _status(port, "/readyz") == 200


def _status(port: int, path: str) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60).status_code
    except httpx.ConnectError:
        return 0
