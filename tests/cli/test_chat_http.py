"""The OpenAI backend against a fake server: success and every way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sgl.cli.chat_backend import ContextFullError, Piece
from sgl.cli.chat_http import HttpBackend, normalize
from sgl.engine.base.errors import ConfigError, SglError
from tests.cli.fake_server import CONTEXT_MESSAGES, FakeServer, running


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with running() as server:
        yield server


def answer(fake: FakeServer, question: str, **params: object) -> list[Piece]:
    async def ask() -> list[Piece]:
        backend = await HttpBackend.connect(fake.url, "", "")
        try:
            return [piece async for piece in backend.stream([{"role": "user", "content": question}], dict(params))]
        finally:
            await backend.close()

    return asyncio.run(ask())


def test_an_answer_with_its_numbers(fake: FakeServer) -> None:
    pieces = answer(fake, "one two \u2603", temperature=0.5)
    assert "".join(piece.text for piece in pieces) == "one two \u2603"
    assert [piece.finish for piece in pieces if piece.finish] == ["stop"]
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens, pieces[-1].cached_tokens) == (7, 3, 3)
    body = fake.bodies[-1]
    assert (body["model"], body["temperature"], body["stream"]) == ("fake-model", 0.5, True)
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("drop", "The connection broke off: the answer is not complete."),
        ("error", "The request was preempted for good."),
        ("500", "The engine has stopped."),
    ],
)
def test_failures_of_the_server(fake: FakeServer, question: str, sentence: str) -> None:
    with pytest.raises(SglError) as caught:
        answer(fake, question)
    assert caught.value.message == sentence


def test_a_full_context_is_told_apart(fake: FakeServer) -> None:
    async def ask() -> None:
        backend = await HttpBackend.connect(fake.url, "", "other")
        try:
            messages = [{"role": "user", "content": "x"}] * (CONTEXT_MESSAGES + 1)
            async for _ in backend.stream(messages, {}):
                pass
        finally:
            await backend.close()

    with pytest.raises(ContextFullError):
        asyncio.run(ask())


def test_nobody_there() -> None:
    with pytest.raises(SglError, match=r"No server answers at http://127.0.0.1:1/v1; start one with `sgl serve`"):
        asyncio.run(HttpBackend.connect("127.0.0.1:1", "", ""))


def test_the_key(fake: FakeServer) -> None:
    with running(api_key="hunter2") as locked:
        with pytest.raises(SglError, match="refused the key: pass --api-key or set OPENAI_API_KEY"):
            asyncio.run(HttpBackend.connect(locked.url, "wrong", ""))

        async def connect() -> str:
            backend = await HttpBackend.connect(locked.url, "hunter2", "")
            await backend.close()
            return backend.model

        assert asyncio.run(connect()) == "fake-model"


def test_what_is_no_model_server(fake: FakeServer) -> None:
    with pytest.raises(ConfigError, match="does not list its models; pass --model"):
        asyncio.run(HttpBackend.connect(f"{fake.url}/elsewhere", "", ""))


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("127.0.0.1:30000", "http://127.0.0.1:30000/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/openai/v1/chat/completions", "https://api.example.com/openai/v1"),
        (" h ", "http://h/v1"),
        ("[::1]:30000", "http://[::1]:30000/v1"),
    ],
)
def test_urls_as_people_write_them(url: str, base: str) -> None:
    assert normalize(url) == base


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port", "://", "h:99999999"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--url must be like"):
        normalize(url)
