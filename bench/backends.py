"""How servers are asked for a streamed answer and what their events say; opens no connection and knows no clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sgl.bench.data import Sample
from sgl.bench.figures import Outcome
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.types import Grammar

Json = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """What goes into a request. ``text`` is the question's, made of its ids where there was none.

    Args:
        constraint: fields that keep the answer to a grammar; see `Backend`.
    """

    sample: Sample
    text: str
    model: str
    ignore_eos: bool
    constraint: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """One kind of server.

    Args:
        path: of its route.
        body: the request.
        read: puts an event of the stream that came at a time into the outcome; true if it says that the answer ended.
        sends_text: whether prompts go as text; else as token ids, which says exactly how long they are.
        extends_openai: whether it knows ``ignore_eos``.
        constrain: the fields that keep an answer to a grammar.
    """

    path: str
    body: Callable[[Ask], Json]
    read: Callable[[Json, Outcome, float], bool]
    sends_text: bool = False
    extends_openai: bool = True
    constrain: Callable[[Grammar], Json] = lambda grammar: {grammar.kind: grammar.source}


def _in_response_format(grammar: Grammar) -> Json:
    """OpenAI's own way.

    Raises:
        ConfigError: it has JSON schemas only.
    """
    if grammar.kind != "json_schema":
        message = f"--{grammar.kind}: OpenAI's API keeps answers to JSON schemas only; use --json-schema."
        raise ConfigError(message, param=f"--{grammar.kind}")
    try:
        schema = json.loads(grammar.source)
    except ValueError as error:
        raise ConfigError(f"--json-schema is not JSON: {error}.", param="--json-schema") from None
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


_OF_VLLM = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}


def _in_structured_outputs(grammar: Grammar) -> Json:
    """As vLLM has it since 0.12."""
    return {"structured_outputs": {_OF_VLLM[grammar.kind]: grammar.source}}


def _native_body(ask: Ask) -> Json:
    sampling = {"max_new_tokens": ask.sample.output_len, "temperature": 0.0, "ignore_eos": ask.ignore_eos}
    return {"input_ids": ask.sample.prompt_ids, "sampling_params": sampling | ask.constraint, "stream": True}


def _openai_body(ask: Ask) -> Json:
    options = {"max_tokens": ask.sample.output_len, "temperature": 0.0, "stream": True}
    extension = {"ignore_eos": True} if ask.ignore_eos else {}
    return {"model": ask.model, **options, "stream_options": {"include_usage": True}, **extension, **ask.constraint}


def _completion_body(ask: Ask) -> Json:
    return {**_openai_body(ask), "prompt": ask.sample.prompt_ids}


def _text_completion_body(ask: Ask) -> Json:
    return {**_openai_body(ask), "prompt": "".join((*ask.sample.past, ask.text))}


def _chat_body(ask: Ask) -> Json:
    said = (*ask.sample.past, ask.text)
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return {**_openai_body(ask), "messages": messages}


def _with_counts(body: Callable[[Ask], Json]) -> Callable[[Ask], Json]:
    """vLLM says with every chunk how many tokens it has, if asked to."""

    def extended(ask: Ask) -> Json:
        return {**body(ask), "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

    return extended


def _read_native(event: Json, outcome: Outcome, now_s: float) -> bool:
    meta = event["meta_info"]
    _note(outcome, now_s, meta["completion_tokens"])
    outcome.input_len = meta["prompt_tokens"]
    outcome.cached_len = meta.get("cached_tokens")
    outcome.text = event.get("text") or ""
    finish = meta.get("finish_reason")
    if finish and finish["type"] == "abort":
        raise SglError(f"The server gave the request up: {finish.get('message') or 'aborted'}")
    return finish is not None


def _read_openai(event: Json, outcome: Outcome, now_s: float) -> bool:
    """A chunk of a completion or of a chat. Where chunks are not counted one with text is some token's."""
    usage = event.get("usage")
    choice: Json = next(iter(event["choices"]), {})
    delta = choice.get("delta") or {}
    text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
    outcome.text += text
    if usage and choice:
        _note(outcome, now_s, usage["completion_tokens"])
    elif text:
        outcome.arrivals.append((now_s, None))
    if usage:
        outcome.input_len = usage["prompt_tokens"]
        outcome.output_len = usage["completion_tokens"]
        outcome.cached_len = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return choice.get("finish_reason") is not None


def _note(outcome: Outcome, now_s: float, count: int) -> None:
    """The answer has ``count`` tokens now."""
    if count > outcome.output_len:
        outcome.arrivals.append((now_s, count - outcome.output_len))
    outcome.output_len = count


_NATIVE = Backend("/generate", _native_body, _read_native)
_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"

BACKENDS: Mapping[str, Backend] = {
    "sglang": _NATIVE,
    "sglang-native": _NATIVE,
    "sglang-oai": Backend(_COMPLETIONS, _completion_body, _read_openai),
    "sglang-oai-chat": Backend(_CHAT, _chat_body, _read_openai, sends_text=True),
    "vllm": Backend(_COMPLETIONS, _with_counts(_completion_body), _read_openai, constrain=_in_structured_outputs),
    "vllm-chat": Backend(_CHAT, _with_counts(_chat_body), _read_openai, True, constrain=_in_structured_outputs),
    "lmdeploy": Backend(_COMPLETIONS, _text_completion_body, _read_openai, True, constrain=_in_response_format),
    "openai": Backend(_COMPLETIONS, _text_completion_body, _read_openai, True, False, _in_response_format),
    "openai-chat": Backend(_CHAT, _chat_body, _read_openai, True, False, _in_response_format),
}
