"""One response from its first token to its last: events as they come, the whole at the end, a copy for the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from sgl.engine.api.receipt import receipt_fields
from sgl.engine.base.errors import SglError
from sgl.server.openai.answer import naming
from sgl.server.openai.conversation import Conversation
from sgl.server.openai.logprobs import chat_logprobs
from sgl.server.openai.responses.items import Item
from sgl.server.openai.responses.output import OutputWriter
from sgl.server.openai.responses.snapshot import Snapshot
from sgl.server.openai.responses.store import Stored
from sgl.server.openai.turn import Found, Step, read_turn
from sgl.server.state import ServerState

Json = dict[str, Any]


class Run:
    """Makes one response.

    Args:
        context: the items that it answers, if it is to be stored.
        num_top: alternatives for each token's logprob.
        names: what fields of the engine are called here.
    """

    def __init__(
        self,
        state: ServerState,
        conversation: Conversation,
        snapshot: Snapshot,
        context: list[Item] | None,
        num_top: int,
        names: Mapping[str, str],
    ) -> None:
        self._state = state
        self._conversation = conversation
        self._snapshot = snapshot
        self._context = context
        self._num_top = num_top
        self._names = names
        self._writer = OutputWriter(conversation.new_call_id)
        self._num_events = 0

    async def respond(self) -> Json:
        """The response, complete.

        Raises:
            SglError: the request is refused, was aborted, or the engine gave it up.
        """
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self._response

    async def events(self) -> AsyncGenerator[Json, None]:
        """The events of a stream; the last one has the whole response. The first waits until the engine has begun.

        Raises:
            SglError: as above.
        """
        begun = False
        with naming(self._names):
            async with aclosing(read_turn(self._state, self._conversation)) as steps:
                async for step in steps:
                    if not begun:
                        begun = True
                        self._snapshot.note(step.item)
                        for name in ("created", "in_progress"):
                            yield self._event({"type": f"response.{name}", "response": self._response})
                    for event in self._grow(step):
                        yield self._event(event)
        await asyncio.to_thread(self._keep)  # what it answered may be large
        yield self._event({"type": f"response.{self._snapshot.status}", "response": self._response})

    def fail(self, error: SglError) -> Json:
        """The last event of a stream that cannot go on."""
        if self._writer.items:
            list(self._writer.finish("incomplete"))
        self._snapshot.fail(error)
        self._keep()
        return self._event({"type": "response.failed", "response": self._response})

    @property
    def _response(self) -> Json:
        return self._snapshot.render(self._writer.items)

    def _grow(self, step: Step) -> list[Json]:
        events = [event for found in step.found for event in self._writer.add(found.event, self._logprobs(found))]
        if step.item.finish_reason is not None:
            self._snapshot.finish(step, receipt_fields(step.item))
            events += self._writer.finish(self._snapshot.status)
        return events

    def _logprobs(self, found: Found) -> list[Json]:
        rendered: list[Json] = chat_logprobs(self._state.engine.tokenizer, found.logprobs, self._num_top)["content"]
        return rendered

    def _event(self, event: Json) -> Json:
        self._num_events += 1
        return {**event, "sequence_number": self._num_events - 1}

    def _keep(self) -> None:
        if self._context is not None:
            self._state.responses.put(Stored(self._response, self._context))
