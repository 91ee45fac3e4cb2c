"""`/generate`: SGLang's own API."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sgl.engine.api import GenerateRequest, Generation, native_output
from sgl.engine.api.batch import Batch, make_batch, token_columns
from sgl.engine.api.native import as_json
from sgl.engine.api.request import SessionParams
from sgl.engine.api.sampling import GRAMMAR_FIELDS
from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.fields import asks, refuse_unsupported, warn_ignored, without_empty
from sgl.server.prompts import MAX_PROMPTS, read_prompts
from sgl.server.sse import EventStream
from sgl.server.state import ServerState, state_of

_UNSUPPORTED = dict.fromkeys(("image_data", "lora_path"), asks)
_ROWS_AT_ONCE = 16


class GenerateBody(msgspec.Struct, kw_only=True):
    """The fields that are supported. None stands for the default; a list has an entry for each prompt.

    Args:
        text: the prompt; or ``input_ids``, or ``input_embeds``, exactly one of them.
        input_embeds: a vector for each token of the prompt; with --disable-radix-cache.
        logprob_start_len: first token of the prompt whose logprob is wanted; -1 for none.
        token_ids_logprob: tokens whose logprobs are wanted at every place.
        return_hidden_states: --return-hidden-states if not given; they come with the last item.
        return_receipt: whether the last item carries what `sgl verify` needs to compute the answer again.
        session_params: what the prompt is appended to.
        custom_logit_processor: name and parameters of a registered processor, as JSON.
        stream: whether to send events, whose text is cumulative.
    """

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    input_embeds: list[list[float | list[float]]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool | None] | None = None
    logprob_start_len: int | list[int | None] | None = None
    top_logprobs_num: int | list[int | None] | None = None
    token_ids_logprob: list[int | list[int] | None] | None = None
    return_text_in_logprobs: bool | None = None
    return_hidden_states: bool | list[bool | None] | None = None
    return_receipt: bool | list[bool | None] | None = None
    session_params: SessionParams | list[SessionParams | None] | None = None
    custom_logit_processor: str | list[str | None] | None = None
    stream: bool | None = None
    log_metrics: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class Call:
    """What a body asks for; ``warnings`` are about fields that had no effect."""

    batch: Batch
    stream: bool
    log_metrics: bool
    warnings: list[str]


async def generate(request: Request) -> Response:
    """Continues one prompt or several, whole or as a stream."""
    state = state_of(request)
    call = read_call(await read_object(request), hidden=state.config.serve.return_hidden_states)
    if call.stream:
        return EventStream(_events(state, call))
    async with aclosing(_outputs(state, call)) as outputs:
        whole = await call.batch.whole(outputs)
    if any(asked.return_hidden_states for asked in call.batch.requests):
        return StreamingResponse(_pieces(whole), media_type="application/json")
    return JsonResponse(whole)


async def _pieces(whole: dict[str, Any] | list[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    """The JSON of answers with hidden states, bit by bit: at once, millions of numbers would hold up everybody."""
    outputs = whole if isinstance(whole, list) else [whole]
    yield b"[" if isinstance(whole, list) else b""
    for number, output in enumerate(outputs):
        states = output["meta_info"].pop("hidden_states", None)
        body = (b"," if number else b"") + msgspec.json.encode(output)
        if states is None:
            yield body
            continue
        prompt, *others = states
        yield body.removesuffix(b"}}") + b',"hidden_states":[['  # behind the last entry of meta_info
        async for piece in _rows(prompt):
            yield piece
        yield b"]," if others else b"]"
        async for piece in _rows(others):
            yield piece
        yield b"]}}"
    yield b"]" if isinstance(whole, list) else b""


async def _rows(rows: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = as_json(rows[begin : begin + _ROWS_AT_ONCE])
        yield (b"," if begin else b"") + b",".join(map(bytes, part))
        await asyncio.sleep(0)


async def _events(state: ServerState, call: Call) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(_outputs(state, call)) as outputs:
        async for event in call.batch.stream(outputs):
            yield event


async def _outputs(state: ServerState, call: Call) -> AsyncGenerator[tuple[int, int, dict[str, Any]], None]:
    """(prompt, answer, rendered item) as they come."""
    async with aclosing(state.generate(call.batch.requests, log_metrics=call.log_metrics)) as items:
        async for position, item in items:
            yield position, item.index, await _render(state, call, call.batch.requests[position], item)


async def _render(state: ServerState, call: Call, request: GenerateRequest, item: Generation) -> dict[str, Any]:
    rows: Sequence[Any] = item.hidden_states if request.return_hidden_states else ()
    if rows and call.stream and item.finish_reason is not None:
        rows = await asyncio.to_thread(as_json, rows)  # `_pieces` does it for a whole answer
    output = native_output(item, request, state.engine.tokenizer, rows=lambda _: rows)
    if call.warnings:
        meta = output["meta_info"]
        meta["warnings"] = [*call.warnings, *meta.get("warnings", ())]
    return output


def read_call(raw: dict[str, Any], *, hidden: bool = False) -> Call:
    """The engine requests that a body asks for.

    Args:
        hidden: whether hidden states are wanted where the body does not say.

    Raises:
        SglError: 400 naming the field at fault.
    """
    refuse_unsupported(raw, _UNSUPPORTED)
    body = convert(without_empty(raw), GenerateBody)
    field, prompts, is_list = _prompts(body)
    wanted = body.return_hidden_states
    columns = {
        "sampling_params": _sampling(body.sampling_params),
        "rid": body.rid,
        "return_logprob": body.return_logprob,
        "logprob_start_len": body.logprob_start_len,
        "top_logprobs_num": body.top_logprobs_num,
        "token_ids_logprob": token_columns(body.token_ids_logprob, len(prompts)),
        "return_hidden_states": hidden if wanted is None else wanted,
        "return_receipt": body.return_receipt,
        "session_params": body.session_params,
        "custom_logit_processor": body.custom_logit_processor,
    }
    common = {
        "stream": bool(body.stream),
        "return_text_in_logprobs": bool(body.return_text_in_logprobs),
        "priority": body.priority or 0,
        "cache_salt": body.cache_salt or "",
    }
    batch = make_batch(field, prompts, is_list, columns, **common)
    for request in batch.requests:
        request.rid = uuid.uuid4().hex if request.rid is None else request.rid
    known = {*GenerateBody.__struct_fields__, *_UNSUPPORTED}
    return Call(batch, bool(body.stream), body.log_metrics is not False, warn_ignored(raw, known))


def _prompts(body: GenerateBody) -> tuple[str, list[Any], bool]:
    """The field that they came in, the prompts, and whether they came as a list."""
    given = [name for name in ("text", "input_ids", "input_embeds") if getattr(body, name) is not None]
    if len(given) != 1:
        raise SglError("Either text, input_ids or input_embeds should be provided.", param="text")
    if body.input_embeds is None:
        return given[0], *read_prompts(getattr(body, given[0]), given[0])
    return given[0], *_embedded(body.input_embeds)


def _embedded(rows: list[Any]) -> tuple[list[Any], bool]:
    """One list of vectors, or a list of such lists."""
    kinds = {type(entry) for row in rows for entry in row}
    if not kinds <= {list} and not kinds <= {int, float}:
        raise SglError("`input_embeds` must be a list of vectors or a list of such lists.", param="input_embeds")
    is_list = kinds == {list}
    if is_list and len(rows) > MAX_PROMPTS:
        message = f"`input_embeds` must hold at most {MAX_PROMPTS} prompts, got {len(rows)}."
        raise SglError(message, param="input_embeds")
    return (rows, True) if is_list else ([rows], False)


def _sampling(params: Any) -> Any:
    """As given, without grammars that are empty texts."""
    if isinstance(params, list):
        return [_sampling(entry) for entry in params]
    if params is None:
        return None
    return {name: value for name, value in params.items() if value != "" or name not in GRAMMAR_FIELDS}
