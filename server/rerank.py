"""`/v1/rerank` and `/v1/score`: how well texts go together, by whatever the served model can judge that with.

A cross-encoder reads both texts at once. A reward model reads them as a question and its answer. An embedding model
compares their vectors. A model that generates says how likely certain tokens come next.
"""

from __future__ import annotations

import asyncio
import math
import operator
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api import Embedding, EmbedRequest, GenerateRequest
from sgl.engine.api.embed import MAX_INPUTS, check_pools
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams, TokenLogprob
from sgl.engine.text.template import ChatTemplate
from sgl.server.body import convert, read_object
from sgl.server.embed import embed, warned
from sgl.server.errors import JsonResponse
from sgl.server.fields import Unsupported, asks, checked_text, refuse_unsupported
from sgl.server.openai.answer import naming
from sgl.server.openai.embeddings import EmbeddingUsage, usage
from sgl.server.openai.protocol import Int32
from sgl.server.state import ServerState, state_of

_MAX_LABELS = 1024
_UNSUPPORTED: Unsupported = {"lora_path": asks, "image_data": asks, "instruct": asks, "instruction": asks}
_ONE_TOKEN = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
_NAMES = {"text": "items", "input_ids": "items", "token_ids_logprob": "label_token_ids"}


class Document(msgspec.Struct):
    """A document with its text; its other fields are not looked at."""

    text: str


class RerankBody(msgspec.Struct, kw_only=True):
    """A query and the documents to put in order.

    Args:
        top_n: how many of the best to return; all if not given or 0.
        return_documents: whether the results hold the documents, which they do by default.
        truncate_prompt_tokens: the most tokens of a query with its document, the rest is cut off; -1 for what the
            model takes.
    """

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: Int32 | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: Int32 | None = None
    user: str | None = None


class RerankResult(msgspec.Struct):
    index: int
    relevance_score: float
    document: Document | msgspec.UnsetType = msgspec.UNSET


class RerankAnswer(msgspec.Struct):
    """The documents, the best first; ``index`` is where one stood in the request."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class ScoreBody(msgspec.Struct, kw_only=True):
    """Two texts, or one and a list, or two lists of the same length; or, of a model that generates, a query and items.

    Args:
        text_1, text_2: the texts of each pair.
        query: what stands before every item: a text or token ids.
        items: of the query's kind.
        label_token_ids: tokens that may follow query and item; the score of each is its probability.
        apply_softmax: whether the scores of an item are scaled to add up to one.
        item_first: whether the item stands before the query.
        truncate_prompt_tokens: the most tokens of a pair, the rest is cut off; -1 for what the model takes.
    """

    model: str | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    query: str | list[Int32] | None = None
    items: str | list[str | list[Int32]] | None = None
    label_token_ids: list[Int32] | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None
    truncate_prompt_tokens: Int32 | None = None
    user: str | None = None


class PairScore(msgspec.Struct):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(msgspec.Struct):
    """The scores of pairs (``data``), or of the label tokens behind each item (``scores``)."""

    object: Literal["list", "scoring"]
    model: str
    usage: EmbeddingUsage
    id: str | msgspec.UnsetType = msgspec.UNSET
    created: int | msgspec.UnsetType = msgspec.UNSET
    data: list[PairScore] | msgspec.UnsetType = msgspec.UNSET
    scores: list[list[float]] | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Pair:
    """Two texts to judge, and what sentences call the second."""

    first: str
    second: str
    name: str


async def rerank(request: Request) -> Response:
    """Puts documents in the order of their relevance to a query."""
    state, raw = state_of(request), await read_object(request)
    refuse_unsupported(raw, _UNSUPPORTED)
    body = convert(raw, RerankBody)
    state.check_model(body.model)
    if body.top_n is not None and body.top_n < 0:
        raise SglError(f"`top_n` must be at least 0, got {body.top_n}.", param="top_n")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    pairs = _pairs([checked_text(body.query, "query")], texts, "documents")
    scores, found = await _judge(state, pairs, body.truncate_prompt_tokens)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": scores[index]} for index in order[: body.top_n or None]
    ]
    for result in results if body.return_documents is not False else ():
        result["document"] = {"text": texts[result["index"]]}
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": body.model or state.model_name,
        "results": results,
        "usage": usage(found),
    }
    return JsonResponse({**answer, **warned(raw, {*RerankBody.__struct_fields__, *_UNSUPPORTED}, found)})


async def score(request: Request) -> Response:
    """Scores pairs of texts, or the tokens that may follow a query and an item."""
    state, raw = state_of(request), await read_object(request)
    refuse_unsupported(raw, _UNSUPPORTED)
    body = convert(raw, ScoreBody)
    state.check_model(body.model)
    of_pairs = body.text_1 is not None or body.text_2 is not None
    if of_pairs == (body.query is not None or body.items is not None):
        raise SglError("Either text_1 and text_2, or query and items should be provided.", param="text_1")
    answer, found = await (_score_pairs(state, body) if of_pairs else _score_labels(state, body))
    warnings = warned(raw, {*ScoreBody.__struct_fields__, *_UNSUPPORTED}, found)
    return JsonResponse({**answer, "model": body.model or state.model_name, **warnings})


async def _score_pairs(state: ServerState, body: ScoreBody) -> tuple[dict[str, Any], list[Embedding]]:
    for name in ("text_1", "text_2"):
        if getattr(body, name) is None:
            raise SglError(f"`{name}` is required.", param=name)
    firsts, seconds = ([x] if isinstance(x, str) else list(x or ()) for x in (body.text_1, body.text_2))
    pairs = _pairs([checked_text(first, "text_1") for first in firsts], seconds, "text_2")
    scores, found = await _judge(state, pairs, body.truncate_prompt_tokens)
    answer = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)],
        "usage": usage(found),
    }
    return answer, found


def _pairs(firsts: Sequence[str], seconds: Sequence[str], name: str) -> list[Pair]:
    """One first text goes with every second one.

    Args:
        firsts: checked already: one that is long must not be looked at for every second one.

    Raises:
        SglError: 400; there are too many or too few, or a second text has a NUL character.
    """
    if not 1 <= len(seconds) <= MAX_INPUTS:
        raise SglError(f"`{name}` must hold 1 to {MAX_INPUTS} texts, got {len(seconds)}.", param=name)
    if len(firsts) == 1:
        firsts = [firsts[0]] * len(seconds)
    if len(firsts) != len(seconds):
        message = f"`text_1` must be one text, or as many as `text_2` ({len(seconds)}), got {len(firsts)}."
        raise SglError(message, param="text_1")
    return [
        Pair(first, checked_text(second, name), f"{name}[{index}]")
        for index, (first, second) in enumerate(zip(firsts, seconds, strict=True))
    ]


async def _judge(
    state: ServerState, pairs: Sequence[Pair], truncate: int | None
) -> tuple[list[float], list[Embedding]]:
    """A score for each pair, and what the engine answered on the way.

    Raises:
        SglError: 400; the model cannot judge pairs, or a text is refused.
    """
    check_pools(state.engine.info)
    pooling = state.engine.info.pooling
    assert pooling is not None
    if pooling.task == "embed":
        return await _compare(state, pairs, truncate)
    if pooling.size != 1:
        message = f"This model gives {pooling.size} scores to a text; to judge pairs there must be one."
        raise SglError(message, code="not_a_ranking_model")
    template = state.engine.template
    if pooling.is_encoder or not template:
        requests = [EmbedRequest(name=x.name, text=x.first, pair=x.second, truncate=truncate) for x in pairs]
    else:
        requests = await asyncio.to_thread(_conversations, template, pairs, truncate)
    found = await embed(state, requests)
    return [item.values[0] for item in found], found


def _conversations(template: ChatTemplate, pairs: Sequence[Pair], truncate: int | None) -> list[EmbedRequest]:
    """What a reward model was trained on: the first text asks, the second one answers."""
    requests = []
    for pair in pairs:
        messages = [{"role": "user", "content": pair.first}, {"role": "assistant", "content": pair.second}]
        text = template.render(messages, add_generation_prompt=False)
        requests.append(EmbedRequest(name=pair.name, text=text, add_special_tokens=False, truncate=truncate))
    return requests


async def _compare(
    state: ServerState, pairs: Sequence[Pair], truncate: int | None
) -> tuple[list[float], list[Embedding]]:
    """The cosine of the angle between the embeddings of each pair; a text that comes again is embedded once."""
    names: dict[str, str] = {}
    for pair in pairs:
        names.setdefault(pair.second, pair.name)
        names.setdefault(pair.first, "text_1" if pair.name.startswith("text_2") else "query")
    requests = [EmbedRequest(name=name, text=text, truncate=truncate) for text, name in names.items()]
    found = await embed(state, requests)
    vectors = {text: item.values for text, item in zip(names, found, strict=True)}

    def compare() -> list[float]:
        return [_cosine(vectors[pair.first], vectors[pair.second]) for pair in pairs]

    return await asyncio.to_thread(compare), found


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    scale = math.hypot(*first) * math.hypot(*second)
    cosine = math.fsum(map(operator.mul, first, second)) / scale if scale else 0.0
    return max(-1.0, min(1.0, cosine))  # what rounding made of more


async def _score_labels(state: ServerState, body: ScoreBody) -> tuple[dict[str, Any], list[Embedding]]:
    labels = body.label_token_ids or []
    vocab_size = state.engine.info.vocab_size
    if not 1 <= len(labels) <= _MAX_LABELS or not all(0 <= token_id < vocab_size for token_id in labels):
        message = f"`label_token_ids` must hold 1 to {_MAX_LABELS} token ids from 0 to {vocab_size - 1}."
        raise SglError(message, param="label_token_ids")
    prompts = _prompts(body)
    requests = [
        GenerateRequest(
            text=prompt if isinstance(prompt, str) else None,
            input_ids=None if isinstance(prompt, str) else prompt,
            sampling=_ONE_TOKEN,
            return_logprob=True,
            token_ids_logprob=tuple(labels),
        )
        for prompt in prompts
    ]
    scores: list[list[float]] = [[] for _ in requests]
    num_tokens = 0
    with naming(_NAMES):
        async with aclosing(state.generate(requests, partial=False)) as items:
            async for position, item in items:
                scores[position] = _probabilities(item.output_logprobs[0], labels, bool(body.apply_softmax))
                num_tokens += item.prompt_tokens
    used = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "scoring", "scores": scores, "usage": used}, []


def _prompts(body: ScoreBody) -> list[str | list[int]]:
    """Query and item together, for each item.

    Raises:
        SglError: 400; one of them is missing, or they are not of the same kind.
    """
    query = body.query
    items = [body.items] if isinstance(body.items, str) else body.items or []
    if query is None or not 1 <= len(items) <= MAX_INPUTS:
        name = "query" if query is None else "items"
        raise SglError(f"query and 1 to {MAX_INPUTS} items should be provided.", param=name)
    prompts: list[str | list[int]] = []
    for index, item in enumerate(items):
        first, second = (item, query) if body.item_first else (query, item)
        if isinstance(first, str) and isinstance(second, str):
            prompts.append(checked_text(first + second, "items"))
        elif isinstance(first, list) and isinstance(second, list):
            prompts.append(first + second)
        else:
            raise SglError(f"`items[{index}]` must be of the query's kind: text, or token ids.", param="items")
    return prompts


def _probabilities(entry: TokenLogprob, labels: Sequence[int], apply_softmax: bool) -> list[float]:
    """Of each label: among all tokens, or with ``apply_softmax`` among the labels."""
    logprobs = dict(entry.chosen)
    if not apply_softmax:
        return [math.exp(logprobs[token_id]) for token_id in labels]
    most = max(logprobs.values())
    values = [math.exp(logprobs[token_id] - most) for token_id in labels]
    total = math.fsum(values)
    return [value / total for value in values]
