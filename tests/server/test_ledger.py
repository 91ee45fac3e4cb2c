"""Ledgers over HTTP: who may see what, while a request runs and after, and how far a profile is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sgl.engine.base.ledger import Chunk, StepNote
from sgl.engine.base.types import Outputs
from tests.server.conftest import Serve
from tests.server.served import Served

KEYS = {"serve_api_key": "plain", "serve_admin_api_key": "admin"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def step(served: Served, step_id: int, *chunks: Chunk) -> None:
    """The made-up engine tells of no steps; here is one."""
    now_s = time.monotonic()
    served.engine.ledgers.follow(StepNote(step_id, now_s, now_s, now_s, now_s, 0, chunks), [])


def one(served: Served, rid: str, **kwargs: Any) -> dict[str, Any]:
    response = served.get(f"/requests/{rid}", **kwargs)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["rid"] == rid
    [answer] = found["answers"]
    return dict(answer)


def test_the_parts_are_what_the_client_observed(serve: Serve) -> None:
    served, told_s = serve(delay_s=0.001), []
    on_message = served.client._on_message

    def watch(message: Any) -> None:
        if isinstance(message, Outputs):
            told_s.append(time.monotonic())
        on_message(message)

    served.client._on_message = watch
    began_s = time.monotonic()
    served.answer("/generate", {"text": "x" * 30, "rid": "a"})
    took_ms = 1e3 * (time.monotonic() - began_s)
    answer = one(served, "a")
    assert answer["total_ms"] == pytest.approx(sum(answer["parts"].values()))
    assert 1e3 * (told_s[-1] - told_s[0]) <= answer["total_ms"] <= took_ms
    assert answer["state"] in ("stop", "length") and answer["completion_tokens"] == 31
    assert 0 < answer["first_token_ms"] < answer["total_ms"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_id_of_an_answer_is_enough(served: Served, path: str) -> None:
    asks = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": ["a", "b"]}
    told = served.answer(path, {"model": "m", **asks})
    answers = served.get(f"/requests/{told['id']}").json()["answers"]
    assert len(answers) == len(told["choices"])


def test_neighbours_have_names_for_administrators_only(serve: Serve) -> None:
    served = serve(**KEYS)
    book = served.engine.ledgers
    served.request("POST", "/generate", json={"text": "ab", "rid": "mine"}, headers=bearer("plain"))
    [ledger] = book.find("mine")
    book.close("mine#0", "stop")
    book.open("again#9", ledger)
    step(served, 1, Chunk("again#9", 2, 0, time.monotonic()), Chunk("secret#7", 400))
    step(served, 2, Chunk("again#9", 2), Chunk("secret#7", 400), Chunk("other#8", 9))
    told = {key: served.get("/requests/mine", headers=bearer(key)).text for key in ("plain", "admin")}
    assert "chunk of secret (400 tokens)" in told["admin"]
    assert "secret" not in told["plain"] and "chunk of request 1 (400 tokens)" in told["plain"]
    assert served.get("/requests/mine").status_code == 401
    assert served.get("/requests", headers=bearer("plain")).status_code == 401
    assert served.get("/requests", headers=bearer("admin")).status_code == 200


def test_the_slowest_come_first(served: Served) -> None:
    for rid, length in (("short", 1), ("long", 200), ("middle", 60)):
        served.answer("/generate", {"text": "x" * length, "rid": rid, "sampling_params": {"max_new_tokens": 300}})
    listed = served.get("/requests?slowest=2").json()
    assert listed["num_known"] >= 3
    times = [one["total_ms"] for one in listed["requests"]]
    assert len(times) == 2 and times == sorted(times, reverse=True)
    for bad in ("0", "-1", "x", "100000"):
        response = served.get(f"/requests?slowest={bad}")
        assert response.status_code == 400 and response.json()["error"]["param"] == "slowest"


def test_unknown_requests_and_ledgers_that_are_not_kept(serve: Serve) -> None:
    response = serve().get("/requests/nobody")
    assert response.status_code == 404 and "'nobody'" in response.json()["error"]["message"]
    off = serve(observe_request_ledger_size=0)
    off.answer("/generate", {"text": "a", "rid": "a"})
    for path in ("/requests/a", "/requests"):
        response = off.get(path)
        assert response.status_code == 404 and "--request-ledger-size 0" in response.json()["error"]["message"]


def test_only_the_last_are_kept(serve: Serve) -> None:
    served = serve(observe_request_ledger_size=2)
    for rid in ("a", "b", "c"):
        served.answer("/generate", {"text": "a", "rid": rid})
    assert [served.get(f"/requests/{rid}").status_code for rid in ("a", "b", "c")] == [404, 200, 200]


def test_how_far_a_profile_is(served: Served) -> None:
    served.get("/profile_status")
    assert served.client.calls[-1] == ("profile_status", {})
