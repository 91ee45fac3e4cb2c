"""Renders generations in the form of SGLang's ``/generate``, for the server and the offline engine alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sgl.engine.api.request import GenerateRequest, Generation
from sgl.engine.base.types import FinishReason, TokenLogprob
from sgl.engine.text.tokenizer import Tokenizer

Triple = tuple[float | None, int, str | None]
"""(logprob, token id, text or None)."""


def native_output(item: Generation, request: GenerateRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """``{"text", "meta_info"}``; ``{"token_ids", "meta_info"}`` without a tokenizer. Everything is cumulative."""
    meta: dict[str, Any] = {
        "id": item.rid,
        "finish_reason": item.finish_reason and _finish(item.finish_reason, item.completion_tokens),
        "prompt_tokens": item.prompt_tokens,
        "completion_tokens": item.completion_tokens,
        "cached_tokens": item.cached_tokens,
    }
    if request.return_logprob:
        text = tokenizer.token_text if request.return_text_in_logprobs else _no_text
        meta.update(_logprobs("input", item.transcript.prompt_logprobs, request.top_logprobs_num, text))
        meta.update(_logprobs("output", item.all_output_logprobs, request.top_logprobs_num, text))
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
    side: str, items: Sequence[TokenLogprob], num_top: int, text: Callable[[int], str | None]
) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        f"{side}_token_logprobs": [(item.logprob, item.token_id, text(item.token_id)) for item in items]
    }
    if num_top:
        rendered[f"{side}_top_logprobs"] = [_top(item, num_top, text) for item in items]
    return rendered


def _top(item: TokenLogprob, num_top: int, text: Callable[[int], str | None]) -> list[Triple] | None:
    """The likeliest tokens; None at the first prompt token, before which there is nothing."""
    if item.logprob is None:
        return None
    return [(logprob, token_id, text(token_id)) for token_id, logprob in item.top[:num_top]]


def _no_text(token_id: int) -> None:
    return None
