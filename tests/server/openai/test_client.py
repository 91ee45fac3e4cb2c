"""The official client over a real socket: synchronous and asynchronous, whole and streamed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.live import LiveEcho, live, until

MESSAGES: Any = [{"role": "user", "content": "grüß dich"}]
ANSWER = "<user>grüß dich"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveEcho]:
    with live(serve_api_key="k", model_served_model_name="echo") as server:
        yield server


@pytest.fixture
def client(server: LiveEcho) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "sglang"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=MESSAGES, logprobs=True, top_logprobs=1, seed=1, extra_body={"top_k": 5, "min_tokens": 1}
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert choice.logprobs.content[0].token == "<"
    assert answer.usage is not None and answer.usage.completion_tokens == len(ANSWER.encode()) + 1


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None and last.usage.total_tokens > 0


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt=["ab", "cd"], n=2, logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "cdcd", "cdcd"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens == ["<s>", "a", "b", "a", "b", "</s>"]
    stream = client.completions.create(model="echo", prompt="abc", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_completions_in_full(client: openai.OpenAI) -> None:
    scored = client.completions.create(model="echo", prompt="abc", echo=True, logprobs=2, max_tokens=0).choices[0]
    assert scored.text == "abc" and scored.logprobs is not None
    assert scored.logprobs.text_offset == [0, 0, 1, 2]
    best = client.completions.create(model="echo", prompt=["ab", "cd"], n=2, best_of=3)
    assert [choice.text for choice in best.choices] == ["ab", "ab", "cd", "cd"]
    assert best.usage is not None and best.usage.completion_tokens == 18
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(model="echo", prompt="abc", stream=True, stop="c", stream_options=options)
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
    assert all(chunk.usage is not None for chunk in chunks)
    assert last.choices == [] and last.usage == chunks[-1].usage
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="echo", prompt="abc", suffix="x")
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="echo", prompt="abc", best_of=2, stream=True)


def test_errors_arrive_as_the_clients_own(client: openai.OpenAI, server: LiveEcho) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(model="echo", messages=MESSAGES, tool_choice="required")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_leaving_a_stream_aborts(client: openai.OpenAI, server: LiveEcho) -> None:
    num_aborted = len(server.client.aborted)
    server.client.limit = lambda: 1
    try:
        stream = client.completions.create(model="echo", prompt="x" * 500, max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: len(server.client.aborted) == num_aborted + 1)
    finally:
        server.client.limit = lambda: math.inf


def test_many_at_once(server: LiveEcho) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> None:
        messages: Any = [{"role": "user", "content": f"number {i}"}]
        if i % 2:
            answer = await client.chat.completions.create(model="echo", messages=messages)
            assert answer.choices[0].message.content == f"<user>number {i}"
        else:
            stream = await client.chat.completions.create(model="echo", messages=messages, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(parts) == f"<user>number {i}"

    async def ask_all() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
            await asyncio.gather(*(ask(client, i) for i in range(64)))

    asyncio.run(ask_all())
