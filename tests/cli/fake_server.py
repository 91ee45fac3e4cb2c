"""A server that speaks just enough of the OpenAI API to chat with, and does as the question tells it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

CONTEXT_MESSAGES = 5
"""More messages than these do not fit."""


class FakeServer:
    """Keeps what it was asked. The last question decides: ``slow`` streams forever, ``drop`` breaks off, ``error``
    sends an error in the stream, ``500`` fails, anything else is echoed word by word."""

    def __init__(self, api_key: str = "") -> None:
        self.api_key = api_key
        self.bodies: list[dict[str, Any]] = []
        self.disconnected = threading.Event()
        self.url = ""

    async def models(self, request: Request) -> Response:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return _error(401, "wrong key", "invalid_api_key")
        return JSONResponse({"object": "list", "data": [{"id": "fake-model"}, {"id": "other"}]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if len(body["messages"]) > CONTEXT_MESSAGES:
            return _error(400, "The model's context is full.", "context_length_exceeded")
        question = body["messages"][-1]["content"]
        if question == "500":
            return _error(500, "The engine has stopped.", "engine_dead")
        return StreamingResponse(self._stream(question), media_type="text/event-stream")

    async def _stream(self, question: str) -> AsyncIterator[str]:
        yield _chunk({"role": "assistant", "content": ""})
        if question == "error":
            yield _data({"error": {"message": "The request was preempted for good.", "code": "x"}})
            return
        try:
            for number in range(10**6 if question == "slow" else 0):
                yield _chunk({"content": f"tick{number} "})
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        if question == "drop":
            yield _chunk({"content": "half an ans"})
            raise ConnectionResetError
        words = question.split(" ")
        for number, word in enumerate(words):
            yield _chunk({"content": word + (" " if number < len(words) - 1 else "")})
        yield _chunk({}, finish="length" if question == "long" else "stop")
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "prompt_tokens_details": {"cached_tokens": 3}}
        yield _data({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return _data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


def _error(status: int, message: str, code: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": code}}, status)


@contextmanager
def running(api_key: str = "") -> Iterator[FakeServer]:
    """The server on a free port, in a thread."""
    fake = FakeServer(api_key)
    routes = [
        Route("/v1/models", fake.models),
        Route("/v1/chat/completions", fake.chat, methods=["POST"]),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1))
    sock = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(60)
        sock.close()


if __name__ == "__main__":
    with running() as fake:
        print(fake.url, flush=True)
        threading.Event().wait()
