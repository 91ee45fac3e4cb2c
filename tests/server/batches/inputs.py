"""Inputs and outputs of batches for the tests, and stores and runners that work on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sgl.server.batches.dispatch import Dispatch, Reply
from sgl.server.batches.lines import ENDPOINTS, Limits
from sgl.server.batches.records import BatchRecord, new_id
from sgl.server.batches.runner import Runner
from sgl.server.batches.store import Store
from sgl.server.batches.worker import StoreThread

CHAT = "/v1/chat/completions"


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    """What a line asks, as JSON."""
    body = {"messages": [{"role": "user", "content": f"say {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(*entries: Any) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def requests(count: int) -> bytes:
    """An input with so many lines: r0, r1, ..."""
    return jsonl(*(request(f"r{i}") for i in range(count)))


def entries(content: bytes | Path) -> list[dict[str, Any]]:
    """The lines of an output; every one of them whole."""
    text = content.read_bytes() if isinstance(content, Path) else content
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def ids(content: bytes | Path) -> list[str]:
    return [entry["custom_id"] for entry in entries(content)]


def add_input(store: Store, content: bytes, expires_after: int | None = None) -> str:
    """The id of a file with that content."""
    file_id = new_id("file")
    store.path_of(file_id).write_bytes(content)
    return store.add_file(file_id, "batch", "in.jsonl", expires_after).id


def add_batch(store: Store, content: bytes, endpoint: str = CHAT) -> BatchRecord:
    return store.create_batch(add_input(store, content), endpoint, None)


class FakeModel:
    """Answers with what it was asked.

    Args:
        most_answers: after so many it only waits.

    Attributes:
        asked: how often each line was asked.
        most: how many lines were in flight at once.
        hold: while cleared, nothing is answered.
    """

    def __init__(self, delay_s: float = 0.0, most_answers: int = 10**9) -> None:
        self.asked: dict[str, int] = {}
        self.num_open = self.most = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self._delay_s = delay_s
        self._most_answers = most_answers

    async def __call__(self, endpoint: str, body: bytes) -> Reply:
        question = json.loads(body)["messages"][0]["content"].removeprefix("say ")
        self.asked[question] = self.asked.get(question, 0) + 1
        self.num_open += 1
        self.most = max(self.most, self.num_open)
        try:
            await asyncio.sleep(self._delay_s)
            if len(self.asked) > self._most_answers:
                self.hold.clear()
            await self.hold.wait()
        finally:
            self.num_open -= 1
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}
        return Reply(200, f"id-{question}", json.dumps({"said": question, "usage": usage}, indent=1).encode())


@asynccontextmanager
async def running(
    root: Path, dispatch: Dispatch, max_in_flight: int = 8, **options: Any
) -> AsyncIterator[tuple[StoreThread, Runner]]:
    """A store with a runner, both of which end as those of a server do."""
    thread = await StoreThread.open(lambda: Store(root, **options))
    runner = Runner(thread, dispatch, ENDPOINTS, max_in_flight, Limits())
    try:
        yield thread, runner
    finally:
        await runner.stop()
        await thread.close()


async def until(probe: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Returns once the probe is true."""
    async with asyncio.timeout(timeout_s):
        while not probe():
            await asyncio.sleep(0.005)
