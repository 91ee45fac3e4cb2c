"""The request body of `/v1/responses`, and what becomes of fields that have no effect. Checks types only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from sgl.engine.base.errors import SglError
from sgl.server.body import convert
from sgl.server.fields import Unsupported, asks_beyond, check_metadata, refuse_unsupported, warn_ignored
from sgl.server.openai.protocol import Int32, Int64, unsupported_beside

LOGPROBS = "message.output_text.logprobs"
_MAX_ID_CHARS = 128


class TextFormat(msgspec.Struct, kw_only=True):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ChoiceOfTool(msgspec.Struct, kw_only=True):
    """A ``tool_choice`` that is more than a word."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class PromptBody(msgspec.Struct, kw_only=True):
    """The fields that make the prompt: all of `/v1/responses/input_tokens`. None stands for the default."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChoiceOfTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponsesBody(PromptBody, kw_only=True):
    """All fields; SGLang's own have the names that they have in chats."""

    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Int32 | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    max_tool_calls: Int32 | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    min_tokens: Int32 | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    return_receipt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None


_HARMLESS: Unsupported = {
    "service_tier": asks_beyond("auto", "default"),
    "stream_options": asks_beyond({"include_obfuscation": False}),
    "prompt_cache_retention": asks_beyond("in_memory"),
}
"""What asks for nothing that is not there anyway, for some of its values."""
UNSUPPORTED = unsupported_beside(ResponsesBody, _HARMLESS, "background", "conversation", "prompt", "moderation")
"""What would change the answer: also fields of chats that have another name here, or none."""


def parse(raw: dict[str, Any]) -> tuple[ResponsesBody, list[str]]:
    """A request body, and a warning for every field in it that has no effect.

    Raises:
        SglError: 400 for a wrong type, or for a field that would change the answer and is not supported.
    """
    refuse_unsupported(raw, UNSUPPORTED)
    body = convert(raw, ResponsesBody)
    check_metadata(body.metadata or {})
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if len(getattr(body, name) or "") > _MAX_ID_CHARS:
            raise SglError(f"`{name}` must have at most {_MAX_ID_CHARS} characters.", param=name)
    asked = {name: value for name, value in raw.items() if name not in _HARMLESS or _HARMLESS[name](value)}
    return body, [*warn_ignored(asked, {*body.__struct_fields__, *UNSUPPORTED}), *_warn_inner(body)]


def parse_prompt(raw: dict[str, Any]) -> PromptBody:
    """The part of a request body that makes the prompt.

    Raises:
        SglError: 400, as in `parse`.
    """
    refuse_unsupported(raw, UNSUPPORTED)
    return convert(raw, PromptBody)


def _warn_inner(body: ResponsesBody) -> list[str]:
    """Warnings about parts of fields."""
    reasoning, text = body.reasoning or ReasoningConfig(), body.text or TextConfig()
    ignored = [f"include: {name:.64}" for name in body.include or () if name != LOGPROBS]
    if reasoning.summary is not None or reasoning.generate_summary is not None:
        ignored.append("reasoning.summary")
    if text.verbosity not in (None, "medium"):
        ignored.append("text.verbosity")
    return [f"`{name}` has no effect." for name in ignored[:16]]
