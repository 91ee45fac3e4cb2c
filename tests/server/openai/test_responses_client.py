"""OpenAI's client over a socket: responses, streams, tools, what was stored."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.server.live import LiveEcho, live, until
from tests.server.scripted import LAST_MESSAGE

TOOLS: Any = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveEcho]:
    with live(serve_api_key="k", model_served_model_name="echo") as server:
        yield server


@pytest.fixture(scope="module")
def scripted_client() -> Iterator[openai.OpenAI]:
    """Of a server that answers with the last message, in which it reads calls and reasoning."""
    with live(serve_tool_call_parser="hermes", serve_reasoning_parser="qwen3") as server:
        server.engine.template = LAST_MESSAGE
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            yield client


class Answer(pydantic.BaseModel):
    x: int


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.fixture
def client(server: LiveEcho) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_create(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="echo", input="grüß dich", instructions="s", tools=TOOLS)
    assert answer.output_text == "<system>s<user>grüß dich[1 tools]"
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(answer.output_text.encode()) + 1
    assert answer.usage.input_tokens_details.cached_tokens == 0
    counted = client.responses.input_tokens.count(model="echo", input="grüß dich", instructions="s", tools=TOOLS)
    assert counted.input_tokens == answer.usage.input_tokens


def test_create_as_a_stream(client: openai.OpenAI) -> None:
    with client.responses.create(model="echo", input="grüß dich", stream=True) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == text == "<user>grüß dich"


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="grüß dich", tools=TOOLS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "<user>grüß dich[1 tools]"


def test_tools(scripted_client: openai.OpenAI) -> None:
    asked: Any = {"model": "m", "input": f"<think>hm</think>{CALL}", "tools": TOOLS}
    thought, call = scripted_client.responses.create(**asked).output
    assert thought.type == "reasoning" and thought.content is not None and thought.content[0].text == "hm"
    assert call.type == "function_call" and (call.name, json.loads(call.arguments)) == ("f", {"x": 1})
    with scripted_client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        _, streamed = stream.get_final_response().output
    assert streamed.type == "function_call" and streamed.arguments == call.arguments == "".join(deltas)


def test_parse(scripted_client: openai.OpenAI) -> None:
    parsed = scripted_client.responses.parse(model="m", input='{"x": 7}', text_format=Answer)
    assert parsed.output_parsed == Answer(x=7)
    with scripted_client.responses.stream(model="m", input='{"x": 8}', text_format=Answer) as stream:
        assert stream.get_final_response().output_parsed == Answer(x=8)
    tool = openai.pydantic_function_tool(Answer, name="f")
    responses_tool: Any = {"type": "function", **tool["function"]}
    called = scripted_client.responses.parse(model="m", input=CALL, tools=[responses_tool])
    [call] = called.output
    assert call.type == "function_call" and call.parsed_arguments in ({"x": 1}, Answer(x=1))


def test_a_stored_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="a")
    second = client.responses.create(model="echo", input="b", previous_response_id=first.id)
    assert second.output_text == "<user>a<assistant><user>a<user>b"
    assert client.responses.retrieve(second.id) == second
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message"] * 3
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="c", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"


def test_items_of_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="a", store=False)
    items: Any = [{"role": "user", "content": "a"}, *first.output, {"role": "user", "content": "b"}]
    assert client.responses.create(model="echo", input=items).output_text == "<user>a<assistant><user>a<user>b"


def test_errors_arrive_as_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="echo", input="a", tools=[{"type": "web_search"}])
    assert refused.value.param == "tools[0].type"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model="echo", input="a", background=True)


def test_leaving_a_stream_aborts(client: openai.OpenAI, server: LiveEcho) -> None:
    num_aborted = len(server.client.aborted)
    server.client.limit = lambda: 1
    try:
        stream = client.responses.create(model="echo", input="x" * 500, stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: len(server.client.aborted) == num_aborted + 1)
    finally:
        server.client.limit = lambda: math.inf


def test_async(server: LiveEcho) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> None:
        if i % 2:
            answer = await client.responses.create(model="echo", input=f"number {i}")
            assert answer.output_text == f"<user>number {i}"
        else:
            async with client.responses.stream(model="echo", input=f"number {i}") as stream:
                assert (await stream.get_final_response()).output_text == f"<user>number {i}"

    async def ask_all() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
            await asyncio.gather(*(ask(client, i) for i in range(32)))

    asyncio.run(ask_all())
