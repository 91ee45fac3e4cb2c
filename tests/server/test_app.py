"""The table of routes, and how paths and methods that are not in it are answered."""

from __future__ import annotations

import pytest

from sgl.server.auth import GuardedRoute, Level
from sgl.server.routes import ROUTES
from tests.server.conftest import Serve
from tests.server.served import Served

OPEN, API, ADMIN = Level.OPEN, Level.API, Level.ADMIN


def test_every_route_and_who_may_call_it() -> None:
    """A new route is a line here, so that its level is a decision."""
    assert {(route.path, tuple(sorted(route.methods or ())), route.level) for route in ROUTES} == {
        ("/health", ("GET", "HEAD"), OPEN),
        ("/metrics", ("GET", "HEAD"), OPEN),
        ("/health_generate", ("GET", "HEAD"), API),
        ("/get_model_info", ("GET", "HEAD"), API),
        ("/get_server_info", ("GET", "HEAD"), API),
        ("/flush_cache", ("POST",), ADMIN),
        ("/generate", ("POST", "PUT"), API),
        ("/v1/models", ("GET", "HEAD"), API),
        ("/v1/models/{model:path}", ("GET", "HEAD"), API),
        ("/v1/chat/completions", ("POST",), API),
        ("/v1/completions", ("POST",), API),
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_levels_hold_on_every_route(serve: Serve, route: GuardedRoute) -> None:
    served = serve(serve_api_key="k", serve_admin_api_key="a", observe_enable_metrics=True)
    method = sorted(route.methods or ())[0]
    path = route.path.replace("{model:path}", "x")
    allowed = {OPEN: (True, True, True), API: (False, True, True), ADMIN: (False, False, True)}[route.level]
    for key, may in zip((None, "k", "a"), allowed, strict=True):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        response = served.request(method, path, headers=headers, content=b"{}")
        assert (response.status_code != 401) is may
        if not may:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"


def test_unknown_paths_and_methods_have_error_bodies(served: Served) -> None:
    missing = served.get("/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"] == {
        "message": "There is nothing at /nothing.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    wrong = served.get("/generate")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "OPTIONS, POST, PUT"
    assert wrong.json()["error"]["message"] == "/generate does not answer GET."
    assert served.get("/health/").status_code == 404


def test_options_tells_the_methods(served: Served) -> None:
    response = served.request("OPTIONS", "/v1/models")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


def test_bodies_are_limited(serve: Serve) -> None:
    served = serve(serve_max_body_bytes=1024)
    assert served.refusal("/generate", {"text": "x" * 2000}, status=413)["code"] == "body_too_large"


def test_a_json_body_needs_no_content_type(served: Served) -> None:
    response = served.request("POST", "/generate", content=b'{"text": "ab"}')
    assert response.json()["text"] == "ab"
