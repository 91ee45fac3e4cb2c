"""The request bodies of `/v1/messages`, and what becomes of fields that have no effect. Checks types only."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sgl.server.body import convert
from sgl.server.fields import Unsupported, asks, asks_beyond, refuse_unsupported, warn_ignored
from sgl.server.openai.protocol import Int32, Int64, unsupported_beside

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class Message(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class ToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Positive | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    schema: dict[str, Any]
    type: Literal["json_schema"] = "json_schema"


class OutputConfig(msgspec.Struct, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct, kw_only=True):
    user_id: Annotated[str, msgspec.Meta(max_length=512)] | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """The fields that make the prompt. None stands for the default."""

    messages: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesBody(CountBody, kw_only=True):
    """All fields; those of SGLang have the names that they have in chats."""

    max_tokens: Positive
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    metadata: Metadata | None = None
    min_p: float | None = None
    min_tokens: Int32 | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    seed: Int64 | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    return_receipt: bool | None = None


_HARMLESS: Unsupported = {
    "cache_control": lambda value: False,  # prompts are cached without being told
    "service_tier": asks_beyond("auto", "standard_only"),
    "speed": asks_beyond("standard"),
    "user": asks,
}
"""What asks for nothing that is not there anyway, for some of its values."""
UNSUPPORTED = unsupported_beside(MessagesBody, _HARMLESS, "container", "mcp_servers")
"""What would change the answer: also fields of chats that have another name here, or none."""

Body = TypeVar("Body", bound=CountBody)


def parse(raw: dict[str, Any], to: type[Body]) -> tuple[Body, list[str]]:
    """A request body, and a warning for every field in it that has no effect.

    Raises:
        SglError: 400 for a wrong type, or for a field that would change the answer and is not supported.
    """
    refuse_unsupported(raw, UNSUPPORTED)
    body = convert(raw, to)
    asked = {name: value for name, value in raw.items() if name not in _HARMLESS or _HARMLESS[name](value)}
    warnings = warn_ignored(asked, {*body.__struct_fields__, *UNSUPPORTED})
    for name in ("budget_tokens", "display"):
        if body.thinking is not None and getattr(body.thinking, name) is not None:
            warnings.append(f"`thinking.{name}` has no effect.")
    return body, warnings
