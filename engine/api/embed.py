"""Requests for vectors in place of text: embeddings, and scores of classes or rewards. Computes none of them.

To the engine such a request is one that generates nothing; this module makes it one, and reads the vector it ends with.
"""

from __future__ import annotations

import base64
import dataclasses
from array import array
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec

from sgl.engine.api.limits import Limits, bounded_text, fit_prompt
from sgl.engine.api.request import GenerateRequest, Generation
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import PoolingParams, SamplingParams
from sgl.engine.client import ModelInfo
from sgl.engine.text.tokenizer import Tokenizer

MAX_INPUTS = 4096
MAX_TOTAL_TOKENS = 2**20
"""Of all inputs of one call together."""

_NOTHING_NEW = SamplingParams(max_new_tokens=0, ignore_eos=True)


class EmbedRequest(msgspec.Struct, kw_only=True):
    """One sequence to turn into a vector.

    Args:
        name: what sentences about it call it, such as ``input[3]``.
        text: the sequence; or ``input_ids``, exactly one of them.
        pair: a second text behind ``text``, for models that look at two.
        add_special_tokens: whether the tokenizer frames ``text``; not for rendered chats, which are framed.
        dimensions: how many of the vector's first entries to keep and scale to length one; None for all as they are.
        truncate: the most tokens, the rest is cut off; -1 for what the model takes; None to refuse what is too long.
        rid, priority: as in `GenerateRequest`.

    A token that the model wants at the end of every sequence is added where it is missing.
    """

    name: str = "input"
    text: str | None = None
    pair: str | None = None
    input_ids: Sequence[int] | None = None
    add_special_tokens: bool = True
    dimensions: int | None = None
    truncate: int | None = None
    rid: str | None = None
    priority: int = 0


class Embedding(msgspec.Struct, kw_only=True):
    """One sequence's vector.

    Args:
        data: float32, little endian.
        warnings: what was done otherwise than asked.
    """

    rid: str
    data: bytes
    prompt_tokens: int
    cached_tokens: int
    warnings: tuple[str, ...] = ()

    @property
    def values(self) -> list[float]:
        return array("f", self.data).tolist()

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


def native_embedding(item: Embedding, vector: object) -> dict[str, Any]:
    """``{"embedding", "meta_info"}``, as SGLang's ``/encode`` and ``/classify`` answer, around a vector's values."""
    meta: dict[str, Any] = {
        "id": item.rid,
        "finish_reason": {"type": "length", "length": 0},
        "prompt_tokens": item.prompt_tokens,
        "completion_tokens": 0,
        "cached_tokens": item.cached_tokens,
    }
    if item.warnings:
        meta["warnings"] = list(item.warnings)
    return {"embedding": vector, "meta_info": meta}


def check_task(request: GenerateRequest, info: ModelInfo) -> None:
    """
    Raises:
        SglError: 400; a text is asked of a model that answers with vectors, or the other way round.
    """
    if request.pooling is not None:
        check_pools(info)
    elif not info.is_generation:
        raise SglError(
            "This model answers with embeddings or scores and does not generate text: use /v1/embeddings, /encode or "
            "/classify, or another model.",
            code="not_a_generation_model",
        )


def check_pools(info: ModelInfo) -> None:
    """
    Raises:
        SglError: 400; the model generates text.
    """
    if info.is_generation:
        raise SglError(
            "This model does not appear to be an embedding model by default. Please add `--is-embedding` when "
            "launching the server or try another model.",
            code="not_an_embedding_model",
        )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the engine is to be asked for embeddings, and for each what was done otherwise than asked."""

    requests: list[GenerateRequest]
    warnings: list[tuple[str, ...]]


def prepare(requests: Sequence[EmbedRequest], tokenizer: Tokenizer, info: ModelInfo, limits: Limits) -> Prepared:
    """The engine's requests, tokenized and within its limits.

    Raises:
        SglError: 400 that names the input at fault.
    """
    check_pools(info)
    if not 1 <= len(requests) <= MAX_INPUTS:
        raise SglError(f"1 to {MAX_INPUTS} inputs can be sent at once, got {len(requests)}.", param="input")
    prepared, num_tokens = Prepared([], []), 0
    for request in requests:
        with _named(request.name):
            _check(request, info)
            sequence = _tokenize(request, tokenizer, info, limits)
            found = _engine_request(request, sequence, info)
            fit_prompt(sequence.ids, found, limits)  # for its refusals
        num_tokens += len(sequence.ids)
        if num_tokens > MAX_TOTAL_TOKENS:
            message = f"The inputs have more than {MAX_TOTAL_TOKENS} tokens together; send fewer at once."
            raise SglError(message, code="too_many_tokens", param=request.name)
        prepared.requests.append(found)
        prepared.warnings.append(sequence.warnings)
    return prepared


async def collect(prepared: Prepared, items: AsyncGenerator[tuple[int, Generation], None]) -> list[Embedding]:
    """The vectors of what was prepared, in order, from what the engine answers.

    Raises:
        SglError: a request was refused, or the engine gave it up.
    """
    found: dict[int, Embedding] = {}
    async with aclosing(items):
        async for position, item in items:
            found[position] = Embedding(
                rid=item.rid,
                data=item.transcript.pooled,
                prompt_tokens=item.prompt_tokens,
                cached_tokens=item.cached_tokens,
                warnings=prepared.warnings[position],
            )
    return [found[position] for position in range(len(prepared.requests))]


def _check(request: EmbedRequest, info: ModelInfo) -> None:
    assert info.pooling is not None
    if (request.text is None) == (request.input_ids is None):
        raise SglError("either a text or token ids must be given.")
    size = info.pooling.size
    if request.dimensions is not None and not 1 <= request.dimensions <= size:
        message = (
            f"dimensions must be between 1 and {size}, the size of this model's vectors, got {request.dimensions}."
        )
        raise SglError(message, param="dimensions")
    if request.dimensions is not None and info.pooling.task != "embed":
        raise SglError("dimensions is for embeddings, not for scores.", param="dimensions")
    if request.truncate is not None and not (request.truncate == -1 or 1 <= request.truncate <= info.max_req_input_len):
        message = (
            f"truncate_prompt_tokens must be -1 or between 1 and {info.max_req_input_len}, got {request.truncate}."
        )
        raise SglError(message, param="truncate_prompt_tokens")


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """An input as the model reads it."""

    ids: Sequence[int]
    second_from: int | None = None
    warnings: tuple[str, ...] = ()


def _tokenize(request: EmbedRequest, tokenizer: Tokenizer, info: ModelInfo, limits: Limits) -> _Sequence:
    """The tokens of an input, cut where the client or ``--allow-auto-truncate`` wants that."""
    assert info.pooling is not None
    most, asked = info.max_req_input_len, request.truncate
    may_cut = asked is not None or limits.auto_truncate
    sequence = _encode(request, tokenizer, dataclasses.replace(limits, auto_truncate=may_cut), None)
    end = () if info.pooling.end_id in (None, *sequence.ids[-1:]) else (info.pooling.end_id,)
    room = (most if asked in (None, -1) else asked) - len(end)
    warnings: tuple[str, ...] = ()
    if may_cut and len(sequence.ids) > room:
        sequence = _encode(request, tokenizer, dataclasses.replace(limits, auto_truncate=True), room)
        if asked is None:
            warnings = (f"{request.name} was cut to {room + len(end)} tokens.",)
    return _Sequence((*sequence.ids, *end), sequence.second_from, warnings)


def _encode(request: EmbedRequest, tokenizer: Tokenizer, limits: Limits, most: int | None) -> _Sequence:
    if request.text is None:
        return _Sequence(tuple(request.input_ids or ())[:most])

    def count(piece: str) -> int:
        return len(tokenizer.encode(piece, add_special_tokens=False))

    text, pair = (part and bounded_text(part, count, limits) for part in (request.text, request.pair))
    if not request.add_special_tokens:
        return _Sequence(tokenizer.encode(text or "", add_special_tokens=False)[:most])
    return _Sequence(*tokenizer.encode_whole(text or "", pair, max_tokens=most))


def _engine_request(request: EmbedRequest, sequence: _Sequence, info: ModelInfo) -> GenerateRequest:
    assert info.pooling is not None
    second = sequence.second_from if info.pooling.has_segments else None
    return GenerateRequest(
        rid=request.rid,
        input_ids=sequence.ids,
        sampling=_NOTHING_NEW,
        priority=request.priority,
        pooling=PoolingParams(dimensions=request.dimensions, second_from=second),
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors from within say which input they are about."""
    try:
        yield
    except SglError as error:
        if error.param not in (None, "text", "input_ids"):  # a field of the request, not of its inputs
            raise
        message = f"{name}: {error.message.removeprefix('input_ids: ')}"
        raise SglError(message, code=error.code, status=error.status, param=name) from None
