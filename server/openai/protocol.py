"""The request bodies of OpenAI's API with SGLang's extra fields, and what becomes of fields that have no effect.

Checks types only; ranges are the engine's to check.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sgl.server.body import convert
from sgl.server.fields import Unsupported, asks, asks_beyond, refuse_unsupported, warn_ignored

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class SamplingFields(msgspec.Struct, kw_only=True):
    """What chat and completions share. None stands for the default."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    max_tokens: Int32 | None = None
    min_tokens: Int32 | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    seed: Int64 | None = None
    n: Int32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    user: str | None = None


class ChatBody(SamplingFields, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class FunctionName(msgspec.Struct):
    name: str


class Tool(msgspec.Struct):
    function: FunctionName
    type: Literal["function"] = "function"


class ToolList(msgspec.Struct):
    """What must be there in ``tools``, which reach the chat template as they are."""

    tools: list[Tool]


class CompletionBody(SamplingFields, kw_only=True):
    prompt: str | list[str | Int32 | list[Int32]]
    echo: bool | None = None
    logprobs: Int32 | None = None


UNSUPPORTED: Unsupported = {
    "regex": asks,
    "ebnf": asks,
    "json_schema": asks,
    "response_format": asks_beyond({"type": "text"}),
    "lora_path": asks,
    "session_params": asks,
    "custom_logit_processor": asks,
    "return_hidden_states": asks,
    "functions": asks,
    "function_call": asks_beyond("none", "auto"),
    "audio": asks,
    "modalities": asks_beyond(["text"]),
    "web_search_options": asks,
    "continue_final_message": asks,
    "suffix": asks,
    "best_of": asks_beyond(1),
}

Body = TypeVar("Body", bound=SamplingFields)


def parse(raw: dict[str, Any], to: type[Body]) -> tuple[Body, list[str]]:
    """A request body, and a warning for every field in it that has no effect.

    Raises:
        SglError: 400 for a wrong type, or for a field that would change the answer and is not supported.
    """
    refuse_unsupported(raw, UNSUPPORTED)
    return convert(raw, to), warn_ignored(raw, {*to.__struct_fields__, *UNSUPPORTED})
