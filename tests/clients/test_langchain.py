"""LangChain's client for OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pydantic
import pytest

from tests.clients.conftest import KEY, MODEL
from tests.clients.questions import ANSWER, ASK_WEATHER, CAPITAL, WEATHER

QUESTION = CAPITAL[0]["content"]


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(max_length=20)  # else the small model may go on to the end of its context
    is_large: bool


def _chat(base_url: str, **clients: Any) -> Any:
    from langchain_openai import ChatOpenAI

    key = pydantic.SecretStr(KEY)
    return ChatOpenAI(base_url=base_url, api_key=key, model=MODEL, temperature=0, max_retries=0, **clients)


@pytest.fixture
def chat(base_url: str) -> Iterator[Any]:
    """The client would never close its connections by itself."""
    with httpx.Client(timeout=60) as http:
        yield _chat(base_url, http_client=http)


def test_whole_and_streamed(chat: Any) -> None:
    whole = chat.invoke(QUESTION)
    assert ANSWER in whole.content and whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole.content


def test_several_at_once(base_url: str) -> None:
    async def ask() -> Any:
        async with httpx.AsyncClient(timeout=60) as http:
            return await _chat(base_url, http_async_client=http).abatch([QUESTION] * 4)

    answers = asyncio.run(ask())
    assert len({answer.content for answer in answers}) == 1 and ANSWER in answers[0].content


def test_a_tool_call(chat: Any) -> None:
    bound = chat.bind_tools([WEATHER], tool_choice="get_weather")
    [call] = bound.invoke(ASK_WEATHER[0]["content"]).tool_calls
    assert call["name"] == "get_weather" and list(call["args"]) == ["city"]
    merged = None
    for chunk in bound.stream(ASK_WEATHER[0]["content"]):
        merged = chunk if merged is None else merged + chunk
    assert merged is not None and [c["args"] for c in merged.tool_calls] == [call["args"]]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    assert isinstance(chat.with_structured_output(City, method=method).invoke(QUESTION), City)


def test_embeddings_of_a_model_that_makes_none_are_refused(base_url: str) -> None:
    import openai
    from langchain_openai import OpenAIEmbeddings

    with httpx.Client(timeout=60) as http:
        embeddings = OpenAIEmbeddings(
            base_url=base_url,
            api_key=pydantic.SecretStr(KEY),
            model=MODEL,
            max_retries=0,
            check_embedding_ctx_length=False,  # otherwise it would fetch a tokenizer
            http_client=http,
        )
        with pytest.raises(openai.BadRequestError, match="--is-embedding"):
            embeddings.embed_query("hi")
