"""Recordings over real sockets: sent again with their timing, answered alike, and told apart where they are not."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from sgl.bench.load import Run
from sgl.bench.replay.compare import compare
from sgl.bench.replay.files import Writer, read
from sgl.bench.replay.sender import Target, send_all
from sgl.engine.api.exchange import Answer, AnswerReader, Choice, Exchange
from sgl.engine.base.errors import ConfigError, SglError
from tests.server.live import LiveEcho, live

GREEDY = {"temperature": 0, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveEcho]:
    with live() as running:
        yield running


def exchange(text: str = "abc", at_s: float = 0.0, rid: str = "r", **changes: Any) -> Exchange:
    """One that was answered by its first token after 0.1 s and whole after 0.5 s."""
    answer = Answer(200, "", [Choice(text=text, finish="stop")], 3, 3, 0, 0.1, 0.5)
    body = {"text": text, "sampling_params": GREEDY}
    return Exchange(**{"rid": rid, "path": "/generate", "at_s": at_s, "body": body, "answer": answer, **changes})


def replay(server: LiveEcho, exchanges: list[Exchange], speed: float = 1.0) -> tuple[Run, list[Exchange]]:
    run, answered = Run(), list[Exchange]()
    asyncio.run(send_all(run, exchanges, Target(server.url), speed, answered.append))
    return run, answered


def test_a_recording_is_answered_again_alike(tmp_path: Path) -> None:
    with live(observe_record=str(tmp_path / "a")) as recorded:
        for number, stream in enumerate((False, True, False, True)):
            asked = {"stream": stream, "temperature": 0, "model": "m"}
            native = {"text": f"question {number}", "stream": stream, "sampling_params": GREEDY}
            bodies = {"/generate": native, "/v1/completions": {**asked, "prompt": f"question {number}"}}
            for path, body in bodies.items():
                headers = {"x-request-id": f"{path}{number}"}
                assert httpx.post(recorded.url + path, json=body, headers=headers, timeout=60).status_code == 200
        assert httpx.post(recorded.url + "/generate", json={"text": 3}, timeout=60).status_code == 400
    exchanges = read(tmp_path / "a")
    assert len(exchanges) == 9
    with live(observe_record=str(tmp_path / "b")) as other:
        run, answered = replay(other, exchanges, speed=100.0)
    assert not any(outcome.error for outcome in run.outcomes)
    for again in (answered, read(tmp_path / "b")):  # as the client and as the server saw it
        found = compare(exchanges, again)
        assert (found.num_identical, found.num_greedy, found.only_a, found.only_b) == (9, 8, 0, 0)
        assert 0 < found.ratios["end to end"].low <= found.ratios["end to end"].value


def test_requests_are_sent_when_they_came(server: LiveEcho) -> None:
    times_s = [10.0, 10.2, 10.8]
    _, answered = replay(server, [exchange(at_s=at_s, rid=f"r{at_s}") for at_s in times_s], speed=2.0)
    first_s = answered[0].at_s
    assert [one.at_s - first_s for one in answered] == pytest.approx([0.0, 0.1, 0.4], abs=0.08)
    assert [one.rid for one in answered] == ["r10.0", "r10.2", "r10.8"]


def test_what_is_not_answered_any_more_has_failed(server: LiveEcho) -> None:
    was_good = exchange(body={"text": 3})
    was_refused = exchange(body={"text": 3}, answer=Answer(400, "no"), rid="s")
    run, answered = replay(server, [was_good, was_refused])
    assert sum(bool(outcome.error) for outcome in run.outcomes) == 1
    assert [one.answer.status for one in answered] == [400, 400]
    found = compare([was_good, was_refused], answered)
    assert [(one.rid, one.what) for one in found.differences] == [("r", "status")]


def test_a_full_disk_ends_the_replay(server: LiveEcho) -> None:
    def keep(answered: Exchange) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    far = [exchange(at_s=0.0, rid="a"), exchange(at_s=600.0, rid="b")]
    with pytest.raises(SglError, match=r"cannot be kept: .*No space left on device"):
        asyncio.run(send_all(Run(), far, Target(server.url), 1.0, keep))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(SglError, match=r"No server answers at http://127\.0\.0\.1:9; .*--url"):
        Target("http://127.0.0.1:9/v1").check()
    with pytest.raises(ConfigError, match=r"--url must be like"):
        Target("nothing").check()


@pytest.mark.parametrize(
    ("changes", "what", "position", "b"),
    [
        ({"text": "abd"}, "text", 2, "'d'"),
        ({"text": "ab"}, "text", 2, "the end"),
        ({"finish": "length"}, "finish", 0, "'length'"),
        ({"token_ids": [4, 5, 7]}, "token_ids", 2, "[7]"),
    ],
)
def test_the_first_difference_is_shown(changes: dict[str, Any], what: str, position: int, b: str) -> None:
    old = Choice(text="abc", finish="stop", token_ids=[4, 5, 6] if what == "token_ids" else [])
    new = msgspec.structs.replace(old, **changes)
    a, c = (exchange(answer=Answer(200, "", [choice], 3, 3, 0, 0.1, 0.5)) for choice in (old, new))
    (found,) = compare([a], [c]).differences
    assert (found.what, found.position, found.b, found.is_greedy) == (what, position, b, True)


def test_latencies_are_compared_pair_by_pair() -> None:
    def slowed(factor: float) -> list[Exchange]:
        times = [((0.1 + i) * factor, (0.5 + i) * factor) for i in range(9)]
        answers = (Answer(200, "", [Choice("x")], 3, 3, 0, *each) for each in times)
        return [exchange(rid=f"{i}", answer=answer) for i, answer in enumerate(answers)]

    ratios = compare(slowed(1.0), slowed(2.0)).ratios
    assert {name: ratio.value for name, ratio in ratios.items()} == pytest.approx(
        {"end to end": 2.0, "first token": 2.0, "per further token": 2.0}
    )
    assert all(ratio.is_certain for ratio in ratios.values())


def test_requests_with_one_id_are_matched_in_their_order() -> None:
    a = [exchange("abc", 1.0), exchange("abd", 2.0), exchange("abe", 3.0)]
    found = compare(a, [exchange("abd", 9.0), exchange("abc", 8.0)])
    assert (found.num_pairs, found.num_identical, found.only_a, found.only_b) == (2, 2, 1, 0)


def test_what_redaction_has_changed_is_not_compared() -> None:
    found = compare([exchange("abc", hidden=["text"])], [exchange("abd")])
    assert (found.num_hidden, found.num_compared, found.differences) == (1, 0, ())


def test_sampled_answers_may_differ() -> None:
    body = {"text": "abc", "sampling_params": [{"temperature": 0}, {"temperature": 1.0}]}
    (found,) = compare([exchange("abc", body=body)], [exchange("abd", body=body)]).differences
    assert not found.is_greedy
    chat = exchange(path="/v1/chat/completions", body={"temperature": 0.0})
    assert chat.is_greedy and not exchange(path="/v1/chat/completions", body={}).is_greedy
    assert exchange(body={"sampling_params": {"top_k": 1}}).is_greedy and not exchange(body={}).is_greedy


def test_a_cut_last_line_is_left_out_and_others_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    with Writer(file) as writer:
        writer.write(exchange(at_s=2.0))
        writer.write(exchange(at_s=1.0))
    whole = file.read_bytes()
    assert [one.at_s for one in read(file)] == [1.0, 2.0]
    file.write_bytes(whole[:-9])
    assert [one.at_s for one in read(file)] == [2.0]
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(ConfigError, match=r"line 1 is no recorded request: .*rid"):
        read(file)
    file.write_bytes(whole.replace(b"/generate", b"/nowhere"))
    with pytest.raises(ConfigError, match="line 1 is for /nowhere"):
        read(file)
    with pytest.raises(ConfigError, match=r"no files recording-"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="exists; name another file"):
        Writer(file)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_may_be_cut_anywhere(size: int) -> None:
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "so"}}]},
        {"choices": [{"index": 0, "delta": {"content": "gr\u00fcn"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"name": "f", "arguments": '{"a'}}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"arguments": '":1}'}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 6, "prompt_tokens_details": None}},
    ]
    told = (
        "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
    )
    reader = AnswerReader("/v1/chat/completions", 10.0)
    reader.begin(200, "text/event-stream; charset=utf-8")
    for begin in range(0, len(told), size):
        reader.feed(told[begin : begin + size], 11.0)
    answer = reader.end(12.0, is_whole=True)
    choice = Choice(text="gr\u00fcn", reasoning="so", calls='f{"a":1}', finish="tool_calls")
    assert answer == Answer(200, "", [choice], 4, 6, 0, 1.0, 2.0)


@pytest.mark.parametrize("told", [b"nonsense", b"[]", b'{"choices": 3}', b"\xff", b'{"choices": [{}]}'])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_no_answer_breaks_the_reader(path: str, told: bytes) -> None:
    reader = AnswerReader(path, 0.0)
    reader.begin(200, "application/json")
    reader.feed(told, 1.0)
    answer = reader.end(2.0, is_whole=True)
    assert answer.error == "The answer has not the form of its API." or not answer.choices
