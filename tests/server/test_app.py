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
        ("/livez", ("GET", "HEAD"), OPEN),
        ("/readyz", ("GET", "HEAD"), OPEN),
        ("/startupz", ("GET", "HEAD"), OPEN),
        ("/metrics", ("GET", "HEAD"), OPEN),
        ("/docs", ("GET", "HEAD"), OPEN),
        ("/openapi.json", ("GET", "HEAD"), API),
        ("/tokenize", ("POST",), API),
        ("/v1/tokenize", ("POST",), API),
        ("/detokenize", ("POST",), API),
        ("/v1/detokenize", ("POST",), API),
        ("/tokenizer_info", ("GET", "HEAD"), API),
        ("/apply-template", ("POST",), API),
        ("/health_generate", ("GET", "HEAD"), API),
        ("/get_model_info", ("GET", "HEAD"), API),
        ("/get_server_info", ("GET", "HEAD"), API),
        ("/flush_cache", ("POST",), ADMIN),
        ("/configure_logging", ("POST",), ADMIN),
        ("/start_profile", ("GET", "POST"), ADMIN),
        ("/stop_profile", ("GET", "POST"), ADMIN),
        ("/profile_status", ("GET", "HEAD"), ADMIN),
        ("/requests", ("GET", "HEAD"), ADMIN),
        ("/requests/{rid:path}", ("GET", "HEAD"), API),
        ("/update_weights_from_disk", ("POST",), ADMIN),
        ("/update_weights", ("POST",), ADMIN),
        ("/get_weights_by_name", ("GET", "POST"), ADMIN),
        ("/release_memory_occupation", ("GET", "POST"), ADMIN),
        ("/resume_memory_occupation", ("GET", "POST"), ADMIN),
        ("/init_weights_update_group", ("POST",), ADMIN),
        ("/update_weights_from_distributed", ("POST",), ADMIN),
        ("/open_session", ("POST",), API),
        ("/close_session", ("POST",), API),
        ("/abort_request", ("POST",), API),
        ("/v1/schema/check", ("POST",), API),
        ("/function_call", ("POST",), API),
        ("/generate", ("POST", "PUT"), API),
        ("/v1/models", ("GET", "HEAD"), API),
        ("/v1/models/{model:path}", ("GET", "HEAD"), API),
        ("/v1/chat/completions", ("POST",), API),
        ("/v1/completions", ("POST",), API),
        ("/encode", ("POST", "PUT"), API),
        ("/classify", ("POST", "PUT"), API),
        ("/v1/embeddings", ("POST",), API),
        ("/v1/rerank", ("POST",), API),
        ("/rerank", ("POST",), API),
        ("/v1/score", ("POST",), API),
        ("/v1/responses", ("POST",), API),
        ("/v1/responses/input_tokens", ("POST",), API),
        ("/v1/responses/{response_id}", ("GET", "HEAD"), API),
        ("/v1/responses/{response_id}", ("DELETE",), API),
        ("/v1/responses/{response_id}/input_items", ("GET", "HEAD"), API),
        ("/v1/files", ("POST",), API),
        ("/v1/files", ("GET", "HEAD"), API),
        ("/v1/files/{file_id}", ("GET", "HEAD"), API),
        ("/v1/files/{file_id}", ("DELETE",), API),
        ("/v1/files/{file_id}/content", ("GET", "HEAD"), API),
        ("/v1/batches", ("POST",), API),
        ("/v1/batches", ("GET", "HEAD"), API),
        ("/v1/batches/{batch_id}", ("GET", "HEAD"), API),
        ("/v1/batches/{batch_id}/cancel", ("POST",), API),
        ("/v1/messages", ("POST",), API),
        ("/v1/messages/count_tokens", ("POST",), API),
    }


def test_a_get_that_changes_something_has_no_head() -> None:
    assert not [route.path for route in ROUTES if {"HEAD", "POST"} <= (route.methods or set())]


@pytest.mark.parametrize("path", ["/generate%0A", "/flush_cache%0a", "/v1/models%0A"])
def test_a_path_with_a_line_break_is_another_path(served: Served, path: str) -> None:
    assert served.post(path, {}).status_code == 404


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
