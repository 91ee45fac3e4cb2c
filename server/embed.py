"""`/encode` and `/classify`: SGLang's routes for vectors; and how every route gets them from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api import Embedding, EmbedRequest
from sgl.engine.api.embed import check_pools, collect, native_embedding
from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.fields import Unsupported, asks, refuse_unsupported, warn_ignored
from sgl.server.openai.protocol import Int32
from sgl.server.prompts import read_prompts
from sgl.server.state import ServerState, state_of

_MAX_WARNINGS = 16
_RENDERED_AT_ONCE = 16
_UNSUPPORTED: Unsupported = dict.fromkeys(
    ("image_data", "audio_data", "video_data", "modalities", "input_embeds", "lora_path"), asks
)


class EncodeBody(msgspec.Struct, kw_only=True):
    """What to turn into vectors: ``text`` or ``input_ids``.

    Args:
        text: a text, or a list of texts for a list of vectors.
        input_ids: token ids, or a list of lists of them.
        rid: a name for the request, or for each of a list.
        dimensions: how many of an embedding's first entries to keep and scale to length one.
        truncate_prompt_tokens: the most tokens of an input, the rest is cut off; -1 for what the model takes.
        log_metrics: false keeps the request out of the metrics.
    """

    model: str | None = None
    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    rid: str | list[str] | None = None
    dimensions: Int32 | None = None
    truncate_prompt_tokens: Int32 | None = None
    priority: Int32 | None = None
    log_metrics: bool | None = None


class EncodeMeta(msgspec.Struct):
    id: str
    prompt_tokens: int
    cached_tokens: int


class Encoded(msgspec.Struct):
    """An embedding, or the scores of a model with a head for them."""

    embedding: list[float]
    meta_info: EncodeMeta


Outputs = Encoded | list[Encoded]


async def encode(request: Request) -> Response:
    """The embedding of a text, or of each of a list."""
    return await _answer(request)


async def classify(request: Request) -> Response:
    """The scores that a model with a head for them gives a text, or each of a list."""
    return await _answer(request)


async def _answer(request: Request) -> Response:
    state = state_of(request)
    raw = await read_object(request)
    check_pools(state.engine.info)
    refuse_unsupported(raw, _UNSUPPORTED)
    body = convert(raw, EncodeBody)
    state.check_model(body.model)
    requests, is_list = _requests(body)
    found = await embed(state, requests, log_metrics=body.log_metrics is not False)
    vectors = await rendered(found)
    outputs = [native_embedding(item, vector) for item, vector in zip(found, vectors, strict=True)]
    warnings = warn_ignored(raw, {*EncodeBody.__struct_fields__, *_UNSUPPORTED})
    for output in outputs if warnings else ():
        meta = output["meta_info"]
        meta["warnings"] = [*warnings, *meta.get("warnings", ())]
    return JsonResponse(outputs if is_list else outputs[0])


async def embed(state: ServerState, requests: Sequence[EmbedRequest], *, log_metrics: bool = True) -> list[Embedding]:
    """The vectors of sequences, in order, under the eyes of those who watch requests.

    Raises:
        SglError: one is refused, or the engine gave it up.
    """
    prepared = await state.engine.prepare_embeddings(requests)
    return await collect(prepared, state.generate(prepared.requests, partial=False, log_metrics=log_metrics))


async def rendered(found: Sequence[Embedding]) -> list[msgspec.Raw]:
    """The vectors as JSON, bit by bit: thousands of them at once would keep others' streams waiting."""
    parts = []
    for index, item in enumerate(found):
        parts.append(msgspec.Raw(msgspec.json.encode(item.values)))
        if index % _RENDERED_AT_ONCE == _RENDERED_AT_ONCE - 1:
            await asyncio.sleep(0)
    return parts


def warned(raw: Mapping[str, Any], known: Collection[str], found: Sequence[Embedding]) -> dict[str, Any]:
    """``warnings`` about fields that had no effect and about inputs that were cut, if there are any."""
    warnings = [*warn_ignored(raw, known), *(warning for item in found for warning in item.warnings)]
    return {"warnings": warnings[:_MAX_WARNINGS]} if warnings else {}


def inputs(name: str, given: Any, **fields: Any) -> tuple[list[EmbedRequest], bool]:
    """The sequences of a field that holds one prompt or a list of them, and whether it is a list.

    Args:
        fields: of `EmbedRequest`, the same for all.

    Raises:
        SglError: 400; see `read_prompts`.
    """
    prompts, is_list = read_prompts(given, name)
    requests = []
    for index, prompt in enumerate(prompts):
        content: dict[str, Any] = {"text": prompt} if isinstance(prompt, str) else {"input_ids": prompt}
        requests.append(EmbedRequest(name=f"{name}[{index}]" if is_list else name, **content, **fields))
    return requests, is_list


def _requests(body: EncodeBody) -> tuple[list[EmbedRequest], bool]:
    if (body.text is None) == (body.input_ids is None):
        raise SglError("Either text or input_ids should be provided.", param="text")
    name, given = ("text", body.text) if body.input_ids is None else ("input_ids", body.input_ids)
    requests, is_list = inputs(
        name,
        given,
        dimensions=body.dimensions,
        truncate=body.truncate_prompt_tokens,
        priority=body.priority or 0,
    )
    rids = body.rid if isinstance(body.rid, list) else [body.rid] * len(requests)
    if len(rids) != len(requests) or (isinstance(body.rid, str) and len(requests) > 1):
        raise SglError("`rid` must be a list, with an entry for each input.", param="rid")
    for request, rid in zip(requests, rids, strict=True):
        request.rid = rid
    return requests, is_list
