"""Hands answers, as they become due, to the one who reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sgl.engine.api.answer import Answer
from sgl.engine.api.request import Generation
from sgl.engine.base.errors import SglError


@dataclass(slots=True)
class Entry:
    """An answer in progress.

    Args:
        rid: of its request.
        wire_rid: what the engine calls it.
        position: of its request in the reader's batch.
    """

    rid: str
    wire_rid: str
    position: int
    answer: Answer
    reader: Reader


class Reader:
    """Whoever iterates over the answers of a batch. Answers wait in it only once each, however slow it is."""

    def __init__(self) -> None:
        self._due: dict[str, Entry] = {}
        self._news = asyncio.Event()
        self._error: SglError | None = None

    def notify(self, entry: Entry) -> None:
        """There is an item to take."""
        self._due[entry.wire_rid] = entry
        self._news.set()

    def fail(self, error: SglError) -> None:
        """There will be no more items."""
        self._error = error
        self._news.set()

    async def items(self, num_answers: int) -> AsyncGenerator[tuple[int, Generation], None]:
        """(position, item) until that many answers have had their last.

        Raises:
            SglError: the one that `fail` was given.
        """
        while num_answers:
            await self._news.wait()
            self._news.clear()
            while self._due and self._error is None:
                entry = self._due.pop(next(iter(self._due)))
                item = entry.answer.take()
                num_answers -= item.finish_reason is not None
                yield entry.position, item
            if self._error is not None:
                raise self._error
