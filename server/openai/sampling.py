"""Turns the fields that chat and completions share into an engine request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl.engine.api import GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams
from sgl.server.openai.protocol import SamplingFields

COMMON_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""What OpenAI's API calls fields of `SamplingParams`, where it differs."""
_UNLIMITED = 2**31 - 1
_MAX_ID_DIGITS = 10
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "ignore_eos",
)
_REQUEST = (
    *("no_stop_trim", "skip_special_tokens", "n", "stream", "seed", "priority", "cache_salt"),
    *("custom_logit_processor", "custom_params", "return_hidden_states", "return_receipt"),
)


def engine_request(
    body: SamplingFields,
    prompt: str | list[int],
    *,
    max_new_tokens: int | None,
    temperature: float,
    stop: Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    **fields: Any,
) -> GenerateRequest:
    """The request that a body asks for.

    Args:
        max_new_tokens: what the API makes of its several limits; None for what the context leaves.
        temperature: the API's default.
        stop, stop_token_ids: those of the chat template, beside the body's.
        fields: whatever else the API sets on a `GenerateRequest`.
    """
    sampling = {
        "temperature": temperature,
        **_given(body, _SAMPLING),
        "max_new_tokens": _UNLIMITED if max_new_tokens is None else max_new_tokens,
        "min_new_tokens": body.min_tokens or 0,
        "stop_token_ids": (*(body.stop_token_ids or ()), *stop_token_ids),
        "logit_bias": _logit_bias(body.logit_bias or {}),
    }
    own_stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return GenerateRequest(
        **{**_given(body, _REQUEST), **fields},
        text=prompt if isinstance(prompt, str) else None,
        input_ids=None if isinstance(prompt, str) else prompt,
        sampling=SamplingParams(**sampling),
        stop=(*own_stop, *stop),
        fit_max_new_tokens=max_new_tokens is None,
        session=body.session_params,
    )


def _given(body: SamplingFields, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(body, name) for name in names if getattr(body, name) is not None}


def _logit_bias(bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for name in bias:
        if not (name.isdecimal() and len(name) <= _MAX_ID_DIGITS):
            text = f"`logit_bias` must map token ids to numbers, got the key {name!r:.40}."
            raise SglError(text, param="logit_bias")
    return tuple((int(name), value) for name, value in bias.items())
