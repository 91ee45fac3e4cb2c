"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api import GenerateRequest, Generation
from sgl.engine.base.errors import SglError
from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer
from sgl.server.body import convert, read_object
from sgl.server.fields import checked_text
from sgl.server.openai.answer import Answer, finish_fields
from sgl.server.openai.logprobs import chat_logprobs
from sgl.server.openai.messages import normalise
from sgl.server.openai.protocol import ChatBody, ToolList, parse
from sgl.server.openai.sampling import COMMON_NAMES, engine_request
from sgl.server.state import state_of

_NAMES = {**COMMON_NAMES, "text": "messages", "top_logprobs_num": "top_logprobs"}
_TEMPERATURE = 0.7  # SGLang's default for chats; 1.0 everywhere else


async def create(request: Request) -> Response:
    """Answers a conversation, whole or as a stream."""
    state = state_of(request)
    body, warnings = parse(await read_object(request), ChatBody)
    state.check_model(body.model)
    engine, rid = state.engine, f"chatcmpl-{uuid.uuid4().hex}"
    prompt = await asyncio.to_thread(_prompt, engine.template, body)
    answer = Answer(
        state=state,
        id=rid,
        model=body.model or state.model_name,
        objects=("chat.completion", "chat.completion.chunk"),
        requests=[_engine_request(engine.template, body, rid, prompt)],
        make_choice=lambda _, index: ChatChoice(index, engine.tokenizer, _num_top(body)),
        names=_NAMES,
        warnings=warnings,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    return await answer.respond(bool(body.stream))


class ChatChoice:
    """Renders one output as a message, or as the deltas of one.

    Args:
        num_top: alternatives for each token's logprob; None for no logprobs.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, num_top: int | None) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._begun = False

    def whole(self, item: Generation) -> dict[str, Any]:
        message = {"role": "assistant", "content": item.text}
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs(item),
            **finish_fields(item),
        }

    def chunks(self, item: Generation) -> Iterable[dict[str, Any]]:
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        if item.delta or item.output_logprobs:
            yield {**self._chunk({"content": item.delta}), "logprobs": self._logprobs(item)}
        if item.finish_reason is not None:
            yield {**self._chunk({}), **finish_fields(item)}

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
            "matched_stop": None,
        }

    def _logprobs(self, item: Generation) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        return chat_logprobs(self._tokenizer, item.output_logprobs, self._num_top)


def _prompt(template: ChatTemplate, body: ChatBody) -> str:
    """The conversation as the model's template writes it, with the assistant's turn open."""
    tools = body.tools if _offers_tools(body) else None
    convert({"tools": tools or []}, ToolList)
    prompt = template.render(normalise(body.messages), tools, variables=body.chat_template_kwargs)
    return checked_text(prompt, "messages")


def _offers_tools(body: ChatBody) -> bool:
    if body.tool_choice not in (None, "auto", "none"):
        text = "`tool_choice` must be auto or none: calls cannot be forced on this server yet."
        raise SglError(text, code="unsupported_field", param="tool_choice")
    return body.tool_choice != "none"


def _num_top(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise SglError("`top_logprobs` needs `logprobs`: true.", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _engine_request(template: ChatTemplate, body: ChatBody, rid: str, prompt: str) -> GenerateRequest:
    num_top = _num_top(body)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return engine_request(
        body,
        prompt,
        max_new_tokens=limit,
        temperature=_TEMPERATURE,
        stop=template.stop,
        stop_token_ids=template.stop_token_ids,
        rid=rid,
        add_special_tokens=False,
        return_logprob=num_top is not None,
        top_logprobs_num=num_top or 0,
    )
