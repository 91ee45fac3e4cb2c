"""Turns the body of `/v1/responses` into the body of a chat. Looks nothing up and renders nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sgl.engine.base.errors import SglError
from sgl.server.body import convert
from sgl.server.openai.protocol import ChatBody
from sgl.server.openai.protocol import parse as parse_chat
from sgl.server.openai.responses.protocol import (
    LOGPROBS,
    ChoiceOfTool,
    PromptBody,
    ReasoningConfig,
    ResponsesBody,
    TextConfig,
    TextFormat,
)

_NAMES = {
    "max_new_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "min_new_tokens": "min_tokens",
    "top_logprobs_num": "top_logprobs",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
    "text": "input",
}
TEMPERATURE = 1.0  # OpenAI's default
_SAME = (
    *("model", "parallel_tool_calls", "top_p", "stream", "top_k", "min_p", "min_tokens", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "ignore_eos", "seed"),
    *("priority", "cache_salt", "chat_template_kwargs", "json_schema", "regex", "ebnf", "structural_tag"),
    "return_receipt",
)
"""Fields that chats have by the same names."""


class FunctionTool(msgspec.Struct, kw_only=True):
    """A tool that is a function of the client."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def names_of(body: PromptBody) -> dict[str, str]:
    """What fields of chats and of the engine are called here; also the grammars that are made of others."""
    has_schema = body.text is not None and body.text.format is not None and body.text.format.schema is not None
    made = {
        "json_schema": "text.format" if has_schema else "tools",
        "structural_tag": "tools" if body.tools else "text.format",
    }
    return {**_NAMES, **{kind: name for kind, name in made.items() if not getattr(body, kind, None)}}


def chat_of(body: PromptBody, messages: Sequence[dict[str, Any]]) -> ChatBody:
    """The chat that a body asks for.

    Args:
        messages: the conversation, without the instructions.

    Raises:
        SglError: 400 naming the field at fault.
    """
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools, choice = _offer(read_tools(body), body.tool_choice)
    raw: dict[str, Any] = {
        **{name: getattr(body, name, None) for name in _SAME},
        "messages": [*instructions, *messages],
        "tools": tools or None,
        "tool_choice": choice,
        "response_format": _response_format((body.text or TextConfig()).format),
        "reasoning_effort": (body.reasoning or ReasoningConfig()).effort,
    }
    if isinstance(body, ResponsesBody):
        raw.update(_sampling(body))
    return parse_chat({name: value for name, value in raw.items() if value is not None}, ChatBody)[0]


def read_tools(body: PromptBody) -> list[FunctionTool]:
    """The tools of a body.

    Raises:
        SglError: 400; one is not a function, or is no proper one.
    """
    tools = []
    for i, tool in enumerate(body.tools or ()):
        kind = tool.get("type")
        if kind != "function":
            message = f"`tools[{i}].type` must be function, got {kind!r:.60}: this server runs no tools of its own."
            raise SglError(message, code="unsupported_tool", param=f"tools[{i}].type")
        tools.append(convert(tool, FunctionTool, f"tools[{i}]"))
    return tools


def _offer(tools: Sequence[FunctionTool], choice: str | ChoiceOfTool | None) -> tuple[list[dict[str, Any]], Any]:
    """Tools and choice in the form of chats. Of allowed tools, the model does not even see the others."""
    if not isinstance(choice, ChoiceOfTool):
        return list(map(_chat_tool, tools)), choice
    if choice.type == "function":
        if choice.name is None:
            raise SglError("`tool_choice.name` is required.", param="tool_choice.name")
        return list(map(_chat_tool, tools)), {"type": "function", "function": {"name": choice.name}}
    if choice.type != "allowed_tools":
        message = f"`tool_choice.type` must be function or allowed_tools, got {choice.type!r:.60}."
        raise SglError(message, code="unsupported_tool", param="tool_choice.type")
    names = [_allowed_name(tool, i) for i, tool in enumerate(choice.tools or ())]
    unknown = [name for name in names if name not in {tool.name for tool in tools}]
    if unknown or not names:
        what = f"names {unknown[0]!r:.60}, which is not in `tools`" if unknown else "must name at least one tool"
        raise SglError(f"`tool_choice.tools` {what}.", param="tool_choice.tools")
    return [_chat_tool(tool) for tool in tools if tool.name in names], choice.mode or "auto"


def _allowed_name(tool: dict[str, Any], index: int) -> str:
    name = tool.get("name")
    if tool.get("type") != "function" or not isinstance(name, str):
        where = f"tool_choice.tools[{index}]"
        raise SglError(f'`{where}` must be {{"type": "function", "name": ...}}.', param=where)
    return name


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    function = {name: value for name, value in msgspec.structs.asdict(tool).items() if value is not None}
    return {"type": "function", "function": function}


def _response_format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None or form.type != "json_schema":
        return None if form is None or form.type == "text" else {"type": form.type}
    if form.schema is None or not form.name:
        missing = "schema" if form.schema is None else "name"
        raise SglError(f"`text.format.{missing}` is required.", param=f"text.format.{missing}")
    given = {"name": form.name, "description": form.description, "schema": form.schema, "strict": form.strict}
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if value is not None}}


def _sampling(body: ResponsesBody) -> dict[str, Any]:
    """The fields that chats call otherwise, or whose defaults differ."""
    wants_logprobs = LOGPROBS in (body.include or ())
    if body.top_logprobs and not wants_logprobs:
        message = f"`top_logprobs` needs `include` with {LOGPROBS}."
        raise SglError(message, param="top_logprobs")
    return {
        "temperature": TEMPERATURE if body.temperature is None else body.temperature,
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": wants_logprobs or None,
        "top_logprobs": body.top_logprobs if wants_logprobs else None,
    }
