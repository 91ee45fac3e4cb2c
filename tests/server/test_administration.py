"""Sessions, aborts, weights, memory, profiles and logging over HTTP."""

from __future__ import annotations

import json
import re
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl.server.auth import Level
from sgl.server.routes import ROUTES
from tests.server.conftest import Serve
from tests.server.live import live, post, read_all, until
from tests.server.served import Served

GENERATE = "/generate"
ADMINISTRATION = [
    *("/flush_cache", "/configure_logging", "/start_profile", "/stop_profile", "/get_weights_by_name"),
    *("/update_weights", "/update_weights_from_disk", "/release_memory_occupation", "/resume_memory_occupation"),
    *("/init_weights_update_group", "/update_weights_from_distributed"),
]


def answer(port: int, path: str, body: Any) -> bytes:
    with closing(post(port, path, body, "Connection: close\r\n")) as sock:
        return read_all(sock)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ADMINISTRATION)
def test_administration_needs_the_admin_key(serve: Serve, path: str) -> None:
    [route] = [route for route in ROUTES if route.path == path]
    assert route.level is Level.ADMIN
    served = serve(serve_api_key="plain", serve_admin_api_key="admin")
    assert served.post(path, {}, headers=bearer("plain")).status_code == 401
    assert served.post(path, {}, headers=bearer("admin")).status_code != 401


def test_sessions(served: Served) -> None:
    session = served.answer("/open_session", {"capacity_of_str_len": 1000})
    assert isinstance(session, str) and len(session) == 32
    assert served.answer("/open_session", {"capacity_of_str_len": 1000, "session_id": "mine"}) == "mine"
    params: dict[str, Any] = {"session_params": {"id": "mine"}}
    assert served.answer(GENERATE, {"text": "ab", "rid": "one", **params})["text"] == "ab"
    params["session_params"]["rid"] = "one"
    output = served.answer(GENERATE, {"text": "c", "rid": "two", **params})
    bos, a, b = served.engine.tokenizer.encode("ab")
    [_, c] = served.engine.tokenizer.encode("c")
    assert served.client.received[-1].token_ids == (bos, a, b, a, b, 257, c)  # with the answer, without a second BOS
    assert (output["meta_info"]["id"], output["meta_info"]["prompt_tokens"]) == ("two", 7)
    params["session_params"].update(offset=2, replace=True)
    served.events(GENERATE, {"text": "c", "rid": "three", **params})
    assert served.client.received[-1].token_ids == (bos, a, c)
    assert (
        "has no request 'two'"
        in served.refusal(GENERATE, {"text": "c", "session_params": {"id": "mine", "rid": "two"}})["message"]
    )
    response = served.post("/close_session", {"session_id": "mine"})
    assert (response.status_code, response.content) == (200, b"")
    error = served.refusal(GENERATE, {"text": "c", **params})
    assert (error["param"], error["code"]) == ("session_params.id", "session_not_found")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/open_session", {}, "capacity_of_str_len"),
        ("/open_session", {"capacity_of_str_len": 0}, "capacity_of_str_len"),
        ("/open_session", {"capacity_of_str_len": "x"}, "capacity_of_str_len"),
        ("/open_session", {"capacity_of_str_len": 5, "name": "x"}, "name"),
        ("/close_session", {"session_id": "nix"}, "session_id"),
        ("/close_session", {}, "session_id"),
        ("/abort_request", {}, "rid"),
        ("/abort_request", {"rid": "a", "abort_all": True}, "rid"),
        ("/abort_request", {"rid": 5}, "rid"),
        ("/update_weights", {}, "model_path"),
        ("/update_weights_from_disk", {"model_path": 5}, "model_path"),
        ("/update_weights_from_disk", {"model_path": "x", "flush": True}, "flush"),
        ("/get_weights_by_name", {}, "name"),
        ("/get_weights_by_name", {"name": "b.weight"}, "name"),
        ("/get_weights_by_name", {"name": "a.weight", "truncate_size": 0}, "truncate_size"),
        ("/start_profile", {"num_steps": "x"}, "num_steps"),
        ("/configure_logging", {"log_requests_level": 9}, "log_requests_level"),
        ("/configure_logging", {"log_requests": 3}, "log_requests"),
        ("/configure_logging", {"dump_requests_folder": "x"}, None),
    ],
)
def test_bad_bodies_are_refused(served: Served, path: str, body: dict[str, Any], param: str | None) -> None:
    error = served.refusal(path, body)
    assert param in (error["param"], None)


def test_a_request_is_ended_by_its_name() -> None:
    with live(hold=True) as server:
        found: dict[str, bytes] = {}

        def ask(rid: str) -> None:
            found[rid] = answer(server.port, GENERATE, {"text": "x" * 200, "rid": rid})

        threads = [threading.Thread(target=ask, args=(rid,)) for rid in ("one", "two", "three")]
        for thread in threads:
            thread.start()
        until(lambda: len(server.client.running) == 3)
        for body in ({"rid": "one"}, {"rid": "unknown"}, {"abort_all": True}):
            assert answer(server.port, "/abort_request", body).startswith(b"HTTP/1.1 200")
            if "rid" in body:
                until(lambda: len(server.client.running) == 2)
        for thread in threads:
            thread.join()
        assert all(b'"type":"abort"' in text for text in found.values())


def test_where_all_of_an_answer_is_needed_its_end_is_an_error() -> None:
    with live(serve_api_key="key", observe_enable_metrics=True) as server:
        server.client.limit = lambda: 0
        http = httpx.Client(base_url=server.url, headers=bearer("key"), timeout=60)
        found: list[httpx.Response] = []
        body = {"query": "a", "items": ["b", "c"], "label_token_ids": [1]}
        thread = threading.Thread(target=lambda: found.append(http.post("/v1/score", json=body)))
        thread.start()
        line = {"custom_id": "a", "method": "POST", "url": "/generate", "body": {"text": "x"}}
        upload = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", json.dumps(line))})
        asked = {"input_file_id": upload.json()["id"], "endpoint": "/generate", "completion_window": "24h"}
        path = f"/v1/batches/{http.post('/v1/batches', json=asked).json()['id']}"
        until(lambda: len(server.client.running) == 3)
        assert http.post("/abort_request", json={"abort_all": True}).status_code == 200
        thread.join()
        assert (found[0].status_code, found[0].json()["error"]["code"]) == (499, "aborted")
        until(lambda: http.get(path).json()["status"] == "completed")
        batch = http.get(path).json()
        assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
        failed = json.loads(http.get(f"/v1/files/{batch['error_file_id']}/content").text)
        assert failed["response"]["status_code"] == 499
        assert failed["response"]["body"]["error"]["message"] == "The request was aborted."
        assert re.search(r'num_aborted_requests_total\{.*reason="request"\} 3\.0', http.get("/metrics").text)
        http.close()


def test_ending_everything_needs_the_admin_key(serve: Serve) -> None:
    served = serve(serve_api_key="plain", serve_admin_api_key="admin")
    path = "/abort_request"
    assert served.post(path, {"rid": "x"}, headers=bearer("plain")).status_code == 200
    response = served.post(path, {"abort_all": True}, headers=bearer("plain"))
    assert (response.status_code, response.json()["error"]["param"]) == (403, "abort_all")
    assert served.post(path, {"abort_all": True}, headers=bearer("admin")).status_code == 200


@pytest.mark.parametrize("path", ["/update_weights", "/update_weights_from_disk"])
def test_weights_are_updated(served: Served, path: str) -> None:
    expected = {"success": True, "message": "Succeeded to update model weights."}
    assert served.answer(path, {"model_path": "/models/new"}) == expected
    assert served.client.calls[-1] == ("update_weights", {"model_path": "/models/new", "load_format": "auto"})
    assert set(served.get("/get_model_info").json()) == {"model_path", "tokenizer_path", "is_generation"}
    assert served.get("/get_model_info").json()["model_path"] == "/models/new"
    response = served.post(path, {"model_path": "/models/wrong", "abort_all_requests": True, "load_format": "dummy"})
    assert response.status_code == 400 and response.json() == {
        "success": False,
        "message": "Failed to get weights iterator: /models/wrong (repository not found).",
    }
    assert served.client.calls[-1][1]["drain_s"] == 0.0
    assert served.get("/get_model_info").json()["model_path"] == "/models/new"


def test_weights_are_shown(served: Served) -> None:
    assert served.answer("/get_weights_by_name", {"name": "a.weight"}) == [[1, 2], [3, 4.5]]
    assert served.client.calls[-1] == ("get_weights", {"name": "a.weight", "truncate_size": 100})
    assert "weights" in served.get("/get_server_info").json()


@pytest.mark.parametrize("path", ["/init_weights_update_group", "/update_weights_from_distributed"])
def test_weights_do_not_come_over_a_process_group(served: Served, path: str) -> None:
    error = served.refusal(path, {"anything": 1}, status=400)
    assert path in error["message"] and "/update_weights_from_disk" in error["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_memory_and_profiles(served: Served, method: str) -> None:
    for path in ("/release_memory_occupation", "/resume_memory_occupation"):
        response = served.request(method, path)
        assert (response.status_code, response.content) == (200, b"")
    response = served.request(method, "/start_profile")
    assert (response.status_code, response.text) == (200, "Start profiling.\n")
    response = served.request(method, "/stop_profile")
    assert response.status_code == 400 and "not in progress" in response.json()["error"]["message"]


def test_profiles_have_options(served: Served) -> None:
    body = {"output_dir": "x", "num_steps": 3, "activities": ["CPU"], "with_stack": None}
    assert served.post("/start_profile", body).text == "Start profiling.\n"
    assert served.client.calls[-1] == ("start_profile", {"output_dir": "x", "num_steps": 3, "activities": ["CPU"]})


def test_logging_is_configured(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(observe_dump_requests_folder=str(tmp_path))
    caplog.set_level("INFO", logger="sgl.server.request_log")
    served.answer(GENERATE, {"text": "silent"})
    assert not caplog.records
    body = {"log_requests": True, "log_requests_level": 2, "dump_requests_folder": "a", "dump_requests_threshold": 1}
    response = served.post("/configure_logging", body)
    assert (response.status_code, response.content) == (200, b"")
    served.answer(GENERATE, {"text": "spoken"})
    assert any("spoken" in record.getMessage() for record in caplog.records)
    assert until(lambda: any("spoken" in dump.read_text() for dump in (tmp_path / "a").glob("*.jsonl")))
    served.post("/configure_logging", {"log_requests": False})
    caplog.clear()
    served.answer(GENERATE, {"text": "silent"})
    assert not caplog.records
