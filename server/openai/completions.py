"""`/v1/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base.errors import SglError
from sgl.server.body import read_object
from sgl.server.fields import checked_text
from sgl.server.openai.answer import Answer, finish_fields
from sgl.server.openai.logprobs import LegacyLogprobs
from sgl.server.openai.protocol import CompletionBody, parse
from sgl.server.openai.sampling import COMMON_NAMES, engine_request
from sgl.server.state import state_of

_MAX_TOKENS = 16
_NAMES = {**COMMON_NAMES, "text": "prompt", "input_ids": "prompt", "top_logprobs_num": "logprobs"}
_TEMPERATURE = 1.0
_MAX_PROMPTS = 4096


async def create(request: Request) -> Response:
    """Continues one prompt or several, whole or as a stream."""
    state = state_of(request)
    body, warnings = parse(await read_object(request), CompletionBody)
    state.check_model(body.model)
    engine, rid = state.engine, f"cmpl-{uuid.uuid4().hex}"
    prompts = _prompts(body.prompt)
    answer = Answer(
        state=state,
        id=rid,
        model=body.model or state.model_name,
        objects=("text_completion", "text_completion"),
        requests=[_engine_request(body, f"{rid}-{i}", prompt) for i, prompt in enumerate(prompts)],
        make_choice=lambda position, index: _choice(engine, body, prompts[position], index),
        names=_NAMES,
        warnings=warnings,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    return await answer.respond(bool(body.stream))


class CompletionChoice:
    """Renders one output as text.

    Args:
        echo: what stands in front of the output.
        logprobs: how to render them; None for none.
    """

    def __init__(self, index: int, echo: str, logprobs: LegacyLogprobs | None) -> None:
        self._index = index
        self._echo = echo
        self._logprobs = logprobs

    def whole(self, item: Generation) -> dict[str, Any]:
        return self._render(item, item.text)

    def chunks(self, item: Generation) -> Iterable[dict[str, Any]]:
        yield self._render(item, item.delta)

    def _render(self, item: Generation, text: str) -> dict[str, Any]:
        prefix, self._echo = self._echo, ""
        tokens = [*(item.input_logprobs or ()), *item.output_logprobs]
        return {
            "index": self._index,
            "text": prefix + text,
            "logprobs": None if self._logprobs is None else self._logprobs.render(tokens),
            **finish_fields(item),
        }


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either."""
    if isinstance(prompt, str):
        return [checked_text(prompt, "prompt")]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [prompt]
    if kinds not in ({str}, {list}):
        text = "`prompt` must be a text, a list of texts, a list of token ids or a list of such lists; not empty."
        raise SglError(text, param="prompt")
    if len(prompt) > _MAX_PROMPTS:
        raise SglError(f"`prompt` must hold at most {_MAX_PROMPTS} prompts, got {len(prompt)}.", param="prompt")
    return [checked_text(item, "prompt") if isinstance(item, str) else item for item in prompt]


def _engine_request(body: CompletionBody, rid: str, prompt: str | list[int]) -> GenerateRequest:
    return engine_request(
        body,
        prompt,
        max_new_tokens=_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        temperature=_TEMPERATURE,
        rid=rid,
        return_logprob=body.logprobs is not None,
        logprob_start_len=0 if body.echo else -1,
        top_logprobs_num=body.logprobs or 0,
    )


def _choice(engine: AsyncEngine, body: CompletionBody, prompt: str | list[int], index: int) -> CompletionChoice:
    tokenizer = engine.tokenizer
    skip = body.skip_special_tokens is not False
    echo = ""
    if body.echo:
        echo = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=skip)
    if body.logprobs is None:
        return CompletionChoice(index, echo, None)
    silent = tokenizer.special_ids if skip else frozenset()
    return CompletionChoice(index, echo, LegacyLogprobs(tokenizer, body.logprobs, silent))
