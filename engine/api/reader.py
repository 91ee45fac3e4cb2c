"""Hands answers, as they become due, to the one who reads them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sgl.engine.api.answer import Answer
from sgl.engine.api.ledger import Ledger
from sgl.engine.api.request import Generation
from sgl.engine.api.sessions import Turn
from sgl.engine.base.errors import SglError


@dataclass(slots=True)
class Entry:
    """An answer in progress.

    Args:
        rid: of its request.
        wire_rid: what the engine calls it.
        position: of its request in the reader's batch.
        turn: of its request, if that is part of a session.
        ledger: where its time goes.
    """

    rid: str
    wire_rid: str
    position: int
    answer: Answer
    reader: Reader
    ledger: Ledger
    turn: Turn | None = None


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

    async def wait(self) -> None:
        """Until there is an item to take.

        Raises:
            SglError: the one that `fail` was given; there is none.
        """
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error

    def take(self) -> tuple[int, Generation] | None:
        """(position, item), the first that is due; None if none is any more."""
        if not self._due or self._error is not None:
            return None
        entry = self._due.pop(next(iter(self._due)))
        return entry.position, entry.answer.take()
