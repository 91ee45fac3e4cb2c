"""Streams of `/v1/messages`: every event, and the same answer as without."""

from __future__ import annotations

import random
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from sgl.engine.text.parsers import OutputParser
from sgl.server.anthropic.output import BlockWriter
from tests.server.named import named_events, same
from tests.server.scripted import (
    INTERVALS,
    SAMPLES,
    abort_all,
    after_three_tokens,
    cut_streams,
    die_in_a_stream,
    small_format,
    split,
)
from tests.server.served import Served

PATH = "/v1/messages"
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in "fg"]
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {"max_tokens": 300, "messages": [{"role": "user", "content": text}], "tools": TOOLS, **fields}


def events_of(served: Served, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, each valid by Anthropic's types."""
    return named_events(served.post(PATH, {**body, "stream": True}))


def accumulated(events: list[Any]) -> dict[str, Any]:
    """What Anthropic's client makes of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] != "ping":
            parsed = EVENT.validate_python(event)
            snapshot = accumulate_event(event=parsed, current_snapshot=snapshot, json_bufs=buffers)
    message: dict[str, Any] = snapshot.model_dump(warnings=False, exclude_unset=True)
    assert message.pop("stop_details") is None
    for block in message["content"]:
        block.pop("parsed_output", None)
    return message


def test_the_events_of_a_text(served: Served) -> None:
    events = events_of(served, asking("ü", tools=None))
    kinds = [event["type"] for event in events]
    num_deltas = kinds.count("content_block_delta")
    assert kinds == [
        *("message_start", "ping", "content_block_start"),
        *["content_block_delta"] * num_deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["input_tokens"]) == ([], None, 8)
    assert events[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {event["index"] for event in events[2:-2]} == {0}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 9


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_stream_says_what_an_answer_at_once_says(scripted: Served, sample: str, interval: int) -> None:
    body = asking(SAMPLES[sample])
    expected = scripted.answer(PATH, body)
    Message.model_validate(expected, strict=True)
    cut_streams(scripted, interval)
    assert same(accumulated(events_of(scripted, body))) == same(expected)


@pytest.mark.parametrize("sample", ["all", "mixed", "cut call", "text"])
@pytest.mark.parametrize("limit", [1, 5, 12, 21])
@pytest.mark.parametrize("stop", [None, ["e"], ['"x"']], ids=["", "letter", "key"])
def test_cut_off_answers(scripted: Served, sample: str, limit: int, stop: list[str] | None) -> None:
    body = asking(SAMPLES[sample], max_tokens=limit, stop_sequences=stop)
    expected = scripted.answer(PATH, body)
    assert same(accumulated(events_of(scripted, body))) == same(expected)
    if expected["stop_reason"] == "stop_sequence":
        assert stop == [expected["stop_sequence"]]
    else:
        assert expected["stop_reason"] == "max_tokens" and expected["stop_sequence"] is None


def test_thoughts_and_calls_are_blocks(scripted: Served) -> None:
    answer = scripted.answer(PATH, asking(SAMPLES["all"]))
    thought, said, first, second = answer["content"]
    assert thought == {"type": "thinking", "thinking": "first", "signature": ""}
    assert said == {"type": "text", "text": "Let me see."}
    assert [(use["name"], use["input"]) for use in (first, second)] == [("f", {"x": 1}), ("g", {})]
    assert first["id"] != second["id"]
    assert answer["stop_reason"] == "tool_use"
    assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": len("(first)")}
    assert scripted.answer(PATH, asking("~f|~"))["content"][0]["input"] == {}


def test_a_call_can_be_answered(scripted: Served) -> None:
    called = scripted.answer(PATH, asking(SAMPLES["all"]))
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "42"}
        for block in called["content"]
        if block["type"] == "tool_use"
    ]
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": called["content"]},
        {"role": "user", "content": results},
    ]
    answer = scripted.answer(PATH, {**asking(""), "messages": turns})
    assert answer["content"] == [{"type": "text", "text": "42"}]


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_makes_the_same_blocks(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice(list(SAMPLES.values())) for _ in range(3))
    contents = []
    for pieces in ([text], split(text, rng), split(text, rng)):
        parser, writer = OutputParser(small_format), BlockWriter()
        found = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
        for event in found:
            list(writer.add(event))
        list(writer.finish())
        contents.append(same(writer.blocks))
    assert contents[0] == contents[1] == contents[2]


def test_refusals_come_before_a_stream(served: Served) -> None:
    response = served.post(PATH, asking("x" * 3000, stream=True))
    assert (response.status_code, response.json()["type"]) == (400, "error")


def test_an_engine_that_dies_ends_the_stream_with_an_error(served: Served) -> None:
    die_in_a_stream(served)
    events = events_of(served, asking("hi" * 50, tools=None))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_answer_is_an_error(served: Served, stream: bool) -> None:
    after_three_tokens(served, lambda: abort_all(served))
    response = served.post(PATH, asking("hi" * 50, stream=stream))
    error = named_events(response)[-1] if stream else response.json()
    assert (error["type"], error["error"]["message"]) == ("error", "The request was aborted.")
