"""Renders generations in the form of SGLang's ``/generate``, for the server and the offline engine alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sgl.engine.api.receipt import receipt_fields
from sgl.engine.api.request import GenerateRequest, Generation
from sgl.engine.base.types import FinishReason, TokenLogprob
from sgl.engine.text.tokenizer import Tokenizer

Triple = tuple[float | None, int, str | None]
"""(logprob, token id, text or None)."""


Rows = Callable[[Sequence[bytes]], Sequence[Any]]
"""Float32 vectors in the form that the caller wants to see them."""


def as_json(rows: Sequence[bytes]) -> list[msgspec.Raw]:
    """Encoded one by one: beside an event loop this can run on a thread without holding it up."""
    return [msgspec.Raw(msgspec.json.encode(memoryview(row).cast("f").tolist())) for row in rows]


def native_output(
    item: Generation,
    request: GenerateRequest,
    tokenizer: Tokenizer,
    rows: Rows = as_json,
) -> dict[str, Any]:
    """``{"text", "meta_info"}``; ``{"token_ids", "meta_info"}`` without a tokenizer.

    Everything is cumulative, but hidden states, which are large, come with the last item only: one array for the
    prompt ``[P, H]``, then one ``[H]`` for each further token that the model was given; and so does a receipt.
    """
    meta: dict[str, Any] = {
        "id": item.rid,
        "finish_reason": item.finish_reason and _finish(item.finish_reason, item.completion_tokens),
        "prompt_tokens": item.prompt_tokens,
        "completion_tokens": item.completion_tokens,
        "cached_tokens": item.cached_tokens,
    }
    if request.return_logprob:
        text = tokenizer.token_text if request.return_text_in_logprobs else _no_text
        meta.update(_logprobs("input", item.transcript.prompt_logprobs, request, text))
        meta.update(_logprobs("output", item.all_output_logprobs, request, text))
    if request.return_hidden_states and item.finish_reason:
        states = rows(item.hidden_states)
        meta["hidden_states"] = [states[: item.prompt_tokens], *states[item.prompt_tokens :]]
    meta.update(receipt_fields(item))
    if item.warnings:
        meta["warnings"] = list(item.warnings)
    content = {"text": item.text} if tokenizer.vocab_size else {"token_ids": item.output_ids}
    return {**content, "meta_info": meta}


def _finish(reason: FinishReason, num_tokens: int) -> dict[str, Any]:
    if reason.kind == "stop":
        return {"type": "stop", "matched": reason.matched}
    if reason.kind == "length":
        return {"type": "length", "length": num_tokens}
    return {"type": "abort", "message": reason.message, "status_code": reason.status, "err_type": reason.code}


def _logprobs(
    side: str, items: Sequence[TokenLogprob], request: GenerateRequest, text: Callable[[int], str | None]
) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        f"{side}_token_logprobs": [(item.logprob, item.token_id, text(item.token_id)) for item in items]
    }
    num_top = request.top_logprobs_num
    if num_top:
        rendered[f"{side}_top_logprobs"] = [_triples(item, item.top[:num_top], text) for item in items]
    if request.token_ids_logprob:
        rendered[f"{side}_token_ids_logprobs"] = [_triples(item, item.chosen, text) for item in items]
    return rendered


def _triples(
    item: TokenLogprob, others: Sequence[tuple[int, float]], text: Callable[[int], str | None]
) -> list[Triple] | None:
    """Other tokens at the same place; None at the first prompt token, before which there is nothing."""
    if item.logprob is None:
        return None
    return [(logprob, token_id, text(token_id)) for token_id, logprob in others]


def _no_text(token_id: int) -> None:
    return None
