"""Turns the body of `/v1/messages` into the body of a chat. Renders nothing."""

from __future__ import annotations

from typing import Any

from sgl.engine.base.errors import SglError
from sgl.server.anthropic.blocks import chat_messages, chat_tools
from sgl.server.anthropic.protocol import CountBody, MessagesBody, OutputConfig, Thinking, ToolChoice
from sgl.server.openai.protocol import ChatBody
from sgl.server.openai.protocol import parse as parse_chat

_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "continue_final_message": "messages",
    "text": "messages",
}
TEMPERATURE = 1.0  # Anthropic's default
_SAME = (
    *("model", "top_p", "top_k", "stream", "min_p", "min_tokens", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "logit_bias", "stop_token_ids", "ignore_eos", "seed", "priority", "cache_salt"),
    *("json_schema", "regex", "ebnf", "structural_tag", "return_receipt"),
)
"""Fields that chats have by the same names."""
_EFFORTS = {"max": "xhigh"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def names_of(body: CountBody) -> dict[str, str]:
    """What fields of chats and of the engine are called here; also the grammars that are made of others."""
    has_schema = body.output_config is not None and body.output_config.format is not None
    made = {
        "json_schema": "output_config.format" if has_schema else "tools",
        "structural_tag": "tools" if body.tools else "output_config.format",
    }
    return {**_NAMES, **{kind: name for kind, name in made.items() if not getattr(body, kind, None)}}


def chat_of(body: CountBody) -> ChatBody:
    """The chat that a body asks for.

    Raises:
        SglError: 400 naming the field at fault.
    """
    output = body.output_config or OutputConfig()
    messages = chat_messages(body.system, body.messages)
    raw: dict[str, Any] = {
        **{name: getattr(body, name, None) for name in _SAME},
        "messages": messages,
        "tools": chat_tools(body.tools or ()) or None,
        "reasoning_effort": _EFFORTS.get(output.effort or "", output.effort),
        "chat_template_kwargs": {**_thinking(body.thinking), **(body.chat_template_kwargs or {})} or None,
        **_choice(body.tool_choice),
    }
    if messages[-1]["role"] == "assistant":  # its answer has been begun by the client
        raw |= {"continue_final_message": True, "add_generation_prompt": False}
    if output.format is not None:
        schema = {"name": "answer", "schema": output.format.schema, "strict": True}
        raw["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, MessagesBody):
        raw["temperature"] = TEMPERATURE if body.temperature is None else body.temperature
        raw["max_completion_tokens"] = body.max_tokens
        raw["stop"] = body.stop_sequences
    return parse_chat({name: value for name, value in raw.items() if value is not None}, ChatBody)[0]


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice.type == "tool":
        if choice.name is None:
            raise SglError("`tool_choice.name` is required.", param="tool_choice.name")
        form: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        form = _CHOICES[choice.type]
    return {"tool_choice": form, "parallel_tool_calls": not choice.disable_parallel_tool_use}


def _thinking(thinking: Thinking | None) -> dict[str, bool]:
    """What chat templates call the switch; adaptive thinking is up to the model."""
    if thinking is None or thinking.type not in ("enabled", "disabled"):
        return {}
    return dict.fromkeys(("enable_thinking", "thinking"), thinking.type == "enabled")
