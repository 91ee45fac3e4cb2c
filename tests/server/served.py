"""A server without a socket: requests go straight into the application."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
from starlette.types import Message, Receive, Scope, Send

from sgl.server.app import build_app
from sgl.server.state import ServerState
from tests.server.fake import make_config, make_engine


class Served:
    """The application over the made-up model, with an event loop of its own.

    Attributes:
        client: the books of the made-up engine.
        has_answered: set once something of the body of the latest answer has been sent.
    """

    def __init__(self, delay_s: float = 0.0, **options: Any) -> None:
        self._runner = asyncio.Runner()
        config = make_config(**options)
        self.engine, self.client = make_engine(config, delay_s)
        state = ServerState(config)
        state.start(self.engine)
        self.app = build_app(state)
        self.has_answered = threading.Event()
        transport = httpx.ASGITransport(self._watched, raise_app_exceptions=True)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            await send(message)
            if message.get("body"):
                self.has_answered.set()

        self.has_answered.clear()
        await self.app(scope, receive, watch)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **kwargs))

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **kwargs)

    def answer(self, path: str, body: Any) -> Any:
        """The JSON of an answer that must succeed."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        """The ``error`` of an answer that must fail."""
        response = self.post(path, body)
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, which must end with ``[DONE]``."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.text)

    def close(self) -> None:
        self._runner.run(self._http.aclose())
        self._runner.run(self.engine.shutdown())
        self._runner.close()


def parse_events(text: str) -> list[Any]:
    """The JSON of every event before the closing ``[DONE]``."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]
