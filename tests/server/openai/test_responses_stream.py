"""Streams of `/v1/responses`: every event, and the same answer as without."""

from __future__ import annotations

import random
from typing import Any

import pytest
from openai._models import construct_type_unchecked
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sgl.engine.text.parsers import OutputParser
from sgl.server.openai.responses.output import OutputWriter
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

PATH = "/v1/responses"
TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def events_of(served: Served, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, each valid by OpenAI's types."""
    events = named_events(served.post(PATH, {**body, "stream": True}))
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def accumulated(events: list[Any]) -> list[Any]:
    """The items that OpenAI's client makes of the deltas alone."""
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    snapshot = None
    for event in events[:-1]:
        if event["type"].endswith("_item.done"):
            continue
        snapshot = state.accumulate_event(construct_type_unchecked(type_=ResponseStreamEvent, value=event))
        state._ResponseStreamState__current_snapshot = snapshot
    assert snapshot is not None
    items = [item.model_dump(warnings=False) for item in snapshot.output]
    for i, item in enumerate(items):
        if item["type"] == "reasoning":  # of which it knows no deltas
            thoughts = [
                e["delta"] for e in events if e["type"] == "response.reasoning_text.delta" and e["output_index"] == i
            ]
            item["content"] = [{"text": "".join(thoughts)}]
    return items


def shown(output: list[Any]) -> list[Any]:
    """What items say, without what only the last events tell."""
    return [
        [item["type"], item.get("name"), item.get("arguments"), [p["text"] for p in item.get("content") or ()]]
        for item in output
    ]


def test_the_events_of_a_text(served: Served) -> None:
    events = events_of(served, {"input": "ü"})
    kinds = [event["type"].removeprefix("response.") for event in events]
    num_deltas = kinds.count("output_text.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * num_deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    for event in events[:2]:
        response = event["response"]
        assert (response["status"], response["output"], response["usage"]) == ("in_progress", [], None)
    added, part = events[2], events[3]
    assert (added["item"]["content"], added["item"]["status"], added["output_index"]) == ([], "in_progress", 0)
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
    assert "".join(deltas) == events[-4]["text"] == events[-3]["part"]["text"] == "<user>ü"
    last = events[-1]["response"]
    assert events[-2]["item"] == last["output"][0]
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1
    assert last["id"] == events[0]["response"]["id"]
    assert same(last) == same(served.answer(PATH, {"input": "ü"}))


def test_the_chunkings_are_different(scripted: Served) -> None:
    counts = []
    for interval in INTERVALS:
        cut_streams(scripted, interval)
        counts.append(len(events_of(scripted, {"input": "just some text " * 4})))
    assert sorted(counts, reverse=True) == counts and counts[0] > counts[-1] + 10


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_stream_says_what_an_answer_at_once_says(scripted: Served, sample: str, interval: int) -> None:
    body = {"input": SAMPLES[sample], "tools": TOOLS, "include": ["message.output_text.logprobs"]}
    expected = scripted.answer(PATH, body)
    cut_streams(scripted, interval)
    events = events_of(scripted, body)
    assert same(events[-1]["response"]) == same(expected)
    Response.model_validate(expected)
    assert same(shown(accumulated(events))) == same(shown(expected["output"]))


@pytest.mark.parametrize("sample", ["all", "mixed", "cut call", "text"])
@pytest.mark.parametrize("limit", [1, 5, 12, 21])
@pytest.mark.parametrize("stop", [None, "e", '"x"'], ids=["", "letter", "key"])
def test_cut_off_answers(scripted: Served, sample: str, limit: int, stop: str | None) -> None:
    body = {"input": SAMPLES[sample], "tools": TOOLS, "max_output_tokens": limit, "stop": stop}
    expected = scripted.answer(PATH, body)
    events = events_of(scripted, body)
    assert same(events[-1]["response"]) == same(expected)
    assert events[-1]["type"] == f"response.{expected['status']}"
    assert [item["status"] for item in expected["output"][:-1]] == ["completed"] * (len(expected["output"]) - 1)
    assert expected["output"][-1]["status"] == expected["status"]


def test_thoughts_and_calls_are_items(scripted: Served) -> None:
    body = {"input": SAMPLES["all"], "tools": TOOLS, "include": ["message.output_text.logprobs"]}
    answer = scripted.answer(PATH, body)
    thought, said, first, second = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "first"}] and thought["summary"] == []
    assert said["content"][0]["text"] == "Let me see."
    assert "".join(token["token"] for token in said["content"][0]["logprobs"]) == "Let me see."
    assert [(call["name"], call["arguments"]) for call in (first, second)] == [("f", '{"x": 1}'), ("g", "{}")]
    assert first["call_id"] != second["call_id"]
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": len("(first)")}
    kinds = [event["type"] for event in events_of(scripted, body)]
    assert kinds.count("response.reasoning_text.done") == 1
    assert kinds.count("response.function_call_arguments.done") == 2


def test_a_call_can_be_answered(scripted: Served) -> None:
    called = scripted.answer(PATH, {"input": SAMPLES["all"], "tools": TOOLS})
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "42"}
        for item in called["output"]
        if item["type"] == "function_call"
    ]
    answer = scripted.answer(PATH, {"input": results, "previous_response_id": called["id"], "tools": TOOLS})
    assert answer["output"][0]["content"][0]["text"] == "42"


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_makes_the_same_items(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice(list(SAMPLES.values())) for _ in range(3))
    outputs = []
    for pieces in ([text], split(text, rng), split(text, rng)):
        parser, writer = OutputParser(small_format), OutputWriter(lambda: "call_1")
        found = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
        for event in found:
            list(writer.add(event))
        list(writer.finish("completed"))
        outputs.append(same(writer.items))
    assert outputs[0] == outputs[1] == outputs[2]


def test_refusals_come_before_a_stream(served: Served) -> None:
    response = served.post(PATH, {"input": "x" * 3000, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input"


def test_an_engine_that_dies_ends_the_stream_with_a_failed_response(served: Served) -> None:
    die_in_a_stream(served)
    events = events_of(served, {"input": "hi" * 50})
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["output"][0]["status"] == "incomplete"
    assert served.get(f"{PATH}/{failed['id']}").json() == failed


@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_response_failed(served: Served, stream: bool) -> None:
    after_three_tokens(served, lambda: abort_all(served))
    body = {"input": "hi" * 50, "stream": stream}
    if stream:
        failed = events_of(served, body)[-1]
        assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
        assert failed["response"]["error"]["message"] == "The request was aborted."
    else:
        assert served.refusal(PATH, body, status=499)["code"] == "aborted"
