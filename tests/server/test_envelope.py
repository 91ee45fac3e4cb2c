"""Request ids, the access log, and what is left of an exception."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl.engine.base.errors import OverloadedError
from sgl.engine.base.log import HTTP_LOGGER
from sgl.server.envelope import Envelope


async def _fine(request: Request) -> Response:
    return Response("fine")


async def _buggy(request: Request) -> Response:
    raise ValueError("secret detail")


async def _busy(request: Request) -> Response:
    raise OverloadedError("The queue is full.")


def _get(path: str, **headers: Any) -> httpx.Response:
    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers=headers)

    routes = [Route("/fine", _fine), Route("/buggy", _buggy), Route("/busy", _busy)]
    app = Starlette(routes=routes, middleware=[Middleware(Envelope)])
    return asyncio.run(get())


def test_a_given_request_id_comes_back() -> None:
    assert _get("/fine", **{"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"two words", b"caf\xe9"])
def test_an_unusable_request_id_is_replaced(given: bytes) -> None:
    found = _get("/fine", **{"x-request-id": given}).headers["x-request-id"]
    assert len(found) == 32
    assert _get("/fine").headers["x-request-id"] != found


def test_a_bug_becomes_an_id_and_its_traceback_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    response = _get("/buggy", **{"x-request-id": "find-me"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert "find-me" in error["message"] and "secret" not in response.text
    assert error["type"] == "server_error"
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "find-me" in record.getMessage() and record.exc_info is not None


def test_overload_says_when_to_come_back() -> None:
    response = _get("/busy")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"] == {
        "message": "The queue is full.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_overloaded",
    }


def test_every_answer_has_an_access_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, HTTP_LOGGER)
    _get("/busy", **{"x-request-id": "abc"})
    _get("/line%0Abreak")
    [record, odd] = [r for r in caplog.records if r.name == HTTP_LOGGER]
    assert '"GET /busy" 503' in record.getMessage()
    assert record.getMessage().endswith(" abc")
    assert '"GET /line%0Abreak" 404' in odd.getMessage()
