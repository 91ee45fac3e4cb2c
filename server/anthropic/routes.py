"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api.receipt import receipt_fields
from sgl.server.anthropic.chat import chat_of, names_of
from sgl.server.anthropic.errors import error_body
from sgl.server.anthropic.output import BlockWriter
from sgl.server.anthropic.protocol import CountBody, MessagesBody, parse
from sgl.server.body import read_object
from sgl.server.errors import JsonResponse
from sgl.server.openai.answer import naming
from sgl.server.openai.conversation import Conversation, converse
from sgl.server.openai.turn import Step, count_tokens, read_turn, reworded
from sgl.server.sse import EventStream
from sgl.server.state import ServerState, state_of

Json = dict[str, Any]


async def create(request: Request) -> Response:
    """Answers a conversation, whole or as a stream of events."""
    state = state_of(request)
    body, warnings = parse(await read_object(request), MessagesBody)
    state.check_model(body.model)
    rid = f"msg_{uuid.uuid4().hex}"
    conversation = await _converse(state, body, rid)
    conversation.request.fit_max_new_tokens = True  # `max_tokens` may be more than the context leaves
    run = _Run(state, body, conversation, rid, warnings + reworded(conversation.warnings, names_of(body)))
    if body.stream:
        return EventStream(run.events(), named=True, error_event=error_body)
    return JsonResponse(await run.respond())


async def count(request: Request) -> Response:
    """How many tokens a conversation has."""
    state = state_of(request)
    body, _ = parse(await read_object(request), CountBody)
    state.check_model(body.model)
    conversation = await _converse(state, body, f"msg_{uuid.uuid4().hex}")
    num_tokens = await asyncio.to_thread(count_tokens, state.engine.tokenizer, conversation.prompt)
    return JsonResponse({"input_tokens": num_tokens})


async def _converse(state: ServerState, body: CountBody, rid: str) -> Conversation:
    chat = await asyncio.to_thread(chat_of, body)  # there may be very many blocks
    with naming(names_of(body)):
        return await converse(state, chat, rid)


class _Run:
    """One answer from its first token to its last."""

    def __init__(
        self, state: ServerState, body: MessagesBody, conversation: Conversation, rid: str, warnings: list[str]
    ) -> None:
        self._state = state
        self._body = body
        self._conversation = conversation
        self._writer = BlockWriter()
        self._message: Json = {
            "id": rid,
            "type": "message",
            "role": "assistant",
            "model": body.model or state.model_name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {},
        }
        self._warnings = warnings

    async def respond(self) -> Json:
        """The message, complete.

        Raises:
            SglError: the request is refused, was aborted, or the engine gave it up.
        """
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return {**self._message, "content": self._writer.blocks}

    async def events(self) -> AsyncGenerator[Json, None]:
        """The events of a stream. The first waits until the engine has begun, as it says what was cached.

        Raises:
            SglError: as above.
        """
        begun = False
        with naming(names_of(self._body)):
            async with aclosing(read_turn(self._state, self._conversation)) as steps:
                async for step in steps:
                    if not begun:
                        begun = True
                        yield self._start(step)
                        yield {"type": "ping"}
                    for found in step.found:
                        for event in self._writer.add(found.event):
                            yield event
                    if step.item.finish_reason is not None:
                        for event in self._end(step):
                            yield event

    def _start(self, step: Step) -> Json:
        self._warnings += step.item.warnings
        if self._warnings:
            self._message["warnings"] = list(dict.fromkeys(self._warnings))
        return {"type": "message_start", "message": {**self._message, "usage": _usage(step)}}

    def _end(self, step: Step) -> list[Json]:
        events = list(self._writer.finish())
        reason, sequence = self._stop(step)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        receipt = receipt_fields(step.item)
        own = {"usage": _usage(step), **({"sgl": receipt} if receipt else {})}
        self._message |= {**delta, **own}
        return [*events, {"type": "message_delta", "delta": delta, **own}, {"type": "message_stop"}]

    def _stop(self, step: Step) -> tuple[str, str | None]:
        """Why the answer ended, and at which of the client's own strings."""
        finish = step.item.finish_reason
        assert finish is not None
        if finish.kind == "length":
            is_full = step.item.completion_tokens < self._body.max_tokens
            return ("model_context_window_exceeded" if is_full else "max_tokens"), None
        if isinstance(finish.matched, str) and finish.matched in (self._body.stop_sequences or ()):
            return "stop_sequence", finish.matched
        return ("tool_use" if self._writer.num_calls else "end_turn"), None


def _usage(step: Step) -> Json:
    """Cached tokens of the prompt are not among its ``input_tokens``."""
    item = step.item
    return {
        "input_tokens": item.prompt_tokens - item.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": item.cached_tokens,
        "output_tokens": item.completion_tokens,
        "output_tokens_details": {"thinking_tokens": step.num_reasoning},
        "service_tier": "standard",
    }
