"""`/generate`: SGLang's own API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api import GenerateRequest, Generation, native_output
from sgl.engine.api.sampling import set_sampling
from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.fields import asks, checked_text, refuse_unsupported, warn_ignored
from sgl.server.sse import EventStream
from sgl.server.state import ServerState, state_of

_MAX_PROMPTS = 4096
_UNSUPPORTED = dict.fromkeys(
    ("input_embeds", "image_data", "lora_path", "session_params", "custom_logit_processor", "return_hidden_states"),
    asks,
)
_UNSUPPORTED_SAMPLING = dict.fromkeys(("json_schema", "regex", "ebnf", "structural_tag", "custom_params"), asks)


class GenerateBody(msgspec.Struct, kw_only=True):
    """The fields that are supported. None stands for the default; a list has an entry for each prompt."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool | None] | None = None
    logprob_start_len: int | list[int | None] | None = None
    top_logprobs_num: int | list[int | None] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    log_metrics: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class Batch:
    """The prompts of one call.

    Args:
        is_list: whether the client gets a list.
        warnings: about fields that had no effect.
    """

    requests: list[GenerateRequest]
    is_list: bool
    stream: bool
    log_metrics: bool
    warnings: list[str]


async def generate(request: Request) -> Response:
    """Continues one prompt or several, whole or as a stream."""
    state = state_of(request)
    batch = read_batch(await read_object(request))
    if batch.stream:
        return EventStream(_stream(state, batch))
    outputs: dict[tuple[int, int], dict[str, Any]] = {}
    async with aclosing(state.generate(batch.requests, log_metrics=batch.log_metrics)) as items:
        async for position, item in items:
            outputs[position, item.index] = _render(state, batch, position, item)
    ordered = [outputs[key] for key in sorted(outputs)]
    return JsonResponse(ordered if batch.is_list else ordered[0])


async def _stream(state: ServerState, batch: Batch) -> AsyncGenerator[dict[str, Any], None]:
    """Every item with all of its text so far; those of a list say which ``index`` of the list they are."""
    num_answers = [request.n for request in batch.requests]
    async with aclosing(state.generate(batch.requests, log_metrics=batch.log_metrics)) as items:
        async for position, item in items:
            index = {"index": sum(num_answers[:position]) + item.index} if batch.is_list else {}
            yield {**_render(state, batch, position, item), **index}


def _render(state: ServerState, batch: Batch, position: int, item: Generation) -> dict[str, Any]:
    output = native_output(item, batch.requests[position], state.engine.tokenizer)
    if batch.warnings:
        meta = output["meta_info"]
        meta["warnings"] = [*batch.warnings, *meta.get("warnings", ())]
    return output


def read_batch(raw: dict[str, Any]) -> Batch:
    """The engine requests that a body asks for.

    Raises:
        SglError: 400 naming the field at fault.
    """
    refuse_unsupported(raw, _UNSUPPORTED)
    body = convert(raw, GenerateBody)
    prompts, is_list = _prompts(body)
    count = len(prompts)
    columns = {
        name: _column(getattr(body, name), name, count)
        for name in ("sampling_params", "rid", "return_logprob", "logprob_start_len", "top_logprobs_num")
    }
    requests = [
        _request(body, prompt, {name: column[i] for name, column in columns.items()})
        for i, prompt in enumerate(prompts)
    ]
    return Batch(
        requests=requests,
        is_list=is_list or any(request.n > 1 for request in requests),
        stream=bool(body.stream),
        log_metrics=body.log_metrics is not False,
        warnings=warn_ignored(raw, {*GenerateBody.__struct_fields__, *_UNSUPPORTED}),
    )


def _prompts(body: GenerateBody) -> tuple[list[str | list[int]], bool]:
    """The prompts, and whether they came as a list."""
    if (body.text is None) == (body.input_ids is None):
        raise SglError("Either text, input_ids or input_embeds should be provided.", param="text")
    name = "text" if body.input_ids is None else "input_ids"
    given: Any = getattr(body, name)
    kinds = set(map(type, given))
    if isinstance(given, str) or kinds == {int}:
        return [given], False
    if len(kinds) != 1 or len(given) > _MAX_PROMPTS:
        message = f"`{name}` must be one prompt or a list of 1 to {_MAX_PROMPTS} prompts of the same kind."
        raise SglError(message, param=name)
    return given, True


def _column(value: Any, name: str, count: int) -> list[Any]:
    """One value for each prompt."""
    if not isinstance(value, list):
        if name == "rid" and value is not None and count > 1:
            raise SglError("`rid` must be a list, with an entry for each prompt.", param="rid")
        return [value] * count
    if len(value) != count:
        message = f"`{name}` must have an entry for each of the {count} prompts, got {len(value)}."
        raise SglError(message, param=name)
    return value


def _request(body: GenerateBody, prompt: str | list[int], row: dict[str, Any]) -> GenerateRequest:
    start = row["logprob_start_len"]
    request = GenerateRequest(
        rid=uuid.uuid4().hex if row["rid"] is None else row["rid"],
        stream=bool(body.stream),
        return_logprob=bool(row["return_logprob"]),
        logprob_start_len=-1 if start is None else start,
        top_logprobs_num=row["top_logprobs_num"] or 0,
        return_text_in_logprobs=bool(body.return_text_in_logprobs),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
    )
    if isinstance(prompt, str):
        request.text = checked_text(prompt, "text")
    else:
        request.input_ids = prompt
    params = row["sampling_params"] or {}
    refuse_unsupported(params, _UNSUPPORTED_SAMPLING, "sampling_params.")
    set_sampling(request, {name: value for name, value in params.items() if name not in _UNSUPPORTED_SAMPLING})
    return request
