"""A server with SGLang's and OpenAI's streams whose answers the test decides; computes nothing."""

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
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

COST = {
    "linears": [{"format": "bf16", "params": 1000, "size_bytes": 2000}],
    "head": {"format": "bf16", "params": 500, "size_bytes": 1000},
    "attention": [{"num_layers": 2, "flops_per_pair": 64, "kv_bytes_per_token": 32}],
    "format": "bf16",
}
"""Of the model that it would have."""

CHUNK = 2
"""Tokens that come at once."""


class FakeServer:
    """Answers every prompt with "x" for each token asked for, two at a time.

    Args:
        tokenizer_path: what it says of its model.
        faults: by number of the request, from 0: ``500``, ``drop`` (breaks off), ``error`` (in the stream), ``silent``
            (no token counts), ``garbage``, ``foreign`` (another API's event), ``hang``.
        cached: prompt tokens that every answer of ``/generate`` says were cached.
        ours: whether it tells its load and the cost of its model, as our server does.
    """

    def __init__(
        self, tokenizer_path: str, faults: dict[int, str] | None = None, *, cached: int = 1, ours: bool = False
    ) -> None:
        self.tokenizer_path = tokenizer_path
        self.faults = faults or {}
        self.cached = cached
        self.ours = ours
        self.num_others = 0  # requests of others under way
        self.per_request = 1  # by how much a request is counted
        self.changed_after: int | None = None  # the request after which it has another model
        self.bodies: list[dict[str, Any]] = []
        self.flushed_after: list[int] = []
        self.hanging = threading.Event()
        self.url = ""

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization") == "Bearer early":
            return JSONResponse({"error": {"message": "The model is still loading."}}, 503)
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return JSONResponse({"object": "list", "data": [{"id": "fake-model"}]})

    async def info(self, request: Request) -> Response:
        changed = self.changed_after is not None and len(self.bodies) > self.changed_after
        return JSONResponse({"tokenizer_path": self.tokenizer_path, "model_path": "other" if changed else "model"})

    async def server_info(self, request: Request) -> Response:
        if not self.ours:
            return JSONResponse({"detail": "Not Found"}, 404)
        load = {"num_active": self.num_others, "num_requests": len(self.bodies) * self.per_request}
        return JSONResponse({"load": load, "cost": COST, "cpu_threads": 1, "chunked_prefill_size": 64})

    async def flush(self, request: Request) -> Response:
        self.flushed_after.append(len(self.bodies))
        return PlainTextResponse("Cache flushed.\n")

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        fault = self.faults.get(len(self.bodies), "")
        self.bodies.append(body)
        if fault == "500":
            return JSONResponse({"error": {"message": "The engine has stopped."}}, 500)
        stream = self._native(body) if request.url.path == "/generate" else self._openai(body, request.url.path, fault)
        return StreamingResponse(self._spoil(stream, fault), media_type="text/event-stream")

    async def _spoil(self, events: AsyncIterator[dict[str, Any]], fault: str) -> AsyncIterator[str]:
        number = 0
        async for event in events:
            if fault == "hang":
                self.hanging.set()
                await asyncio.Event().wait()
            if fault == "garbage":
                yield "data: {\n\n"
            if fault == "foreign":
                event = {"answer": "x"}
            if number == 1 and fault == "error":
                event = {"error": {"message": "The request was preempted for good."}}
            if number == 1 and fault == "drop":
                return
            yield f"data: {json.dumps(event)}\n\n"
            await asyncio.sleep(0.001)
            number += 1
        yield "data: [DONE]\n\n"

    async def _native(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        total = body["sampling_params"]["max_new_tokens"]
        for count in _counts(total):
            finish = {"type": "length", "length": total} if count == total else None
            meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": count}
            meta["cached_tokens"] = self.cached
            yield {"text": "x" * count, "meta_info": {**meta, "finish_reason": finish}}

    async def _openai(self, body: dict[str, Any], path: str, fault: str) -> AsyncIterator[dict[str, Any]]:
        total, said = body["max_tokens"], 0
        counted = body["stream_options"].get("continuous_usage_stats", False)
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": total, "total_tokens": len(prompt) + total}
        if path.endswith("/chat/completions"):
            yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
        for count in _counts(total):
            text, said = "x" * (count - said), count
            content = {"delta": {"content": text}} if path.endswith("/chat/completions") else {"text": text}
            choice = {"index": 0, **content, "finish_reason": "length" if count == total else None}
            yield {"choices": [choice], "usage": {**usage, "completion_tokens": count} if counted else None}
        if fault != "silent":
            yield {"choices": [], "usage": usage}


def _counts(total: int) -> list[int]:
    return [*range(CHUNK, total, CHUNK), total]


@contextmanager
def serve(server: FakeServer) -> Iterator[FakeServer]:
    """The server on a free port, on a thread."""
    routes = [
        Route("/v1/models", server.models),
        Route("/get_model_info", server.info),
        Route("/get_server_info", server.server_info),
        Route("/flush_cache", server.flush, methods=["POST"]),
        *(
            Route(path, server.answer, methods=["POST"])
            for path in ("/generate", "/v1/completions", "/v1/chat/completions")
        ),
    ]
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1)
    program, sock = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread = threading.Thread(target=lambda: program.run(sockets=[sock]), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        program.should_exit = True
        thread.join(60)
        sock.close()
