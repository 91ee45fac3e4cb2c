"""The response object of `/v1/responses`, at every moment of its life. Knows nothing of its output's growth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from sgl.engine.api import Generation
from sgl.engine.base.errors import SglError
from sgl.server.openai.conversation import Conversation
from sgl.server.openai.responses.chat import read_tools
from sgl.server.openai.responses.protocol import ReasoningConfig, ResponsesBody, TextConfig, TextFormat
from sgl.server.openai.turn import Step

Json = dict[str, Any]


class Snapshot:
    """What is said about one response beside its output.

    Args:
        model: the name shown to the client.
        stored: whether the response will be kept.
        warnings: about fields that had no effect.
    """

    def __init__(
        self, body: ResponsesBody, rid: str, conversation: Conversation, model: str, stored: bool, warnings: list[str]
    ) -> None:
        self.id = rid
        self.status = "in_progress"
        self._created_s = int(time.time())
        self._completed_s: int | None = None
        self._asked = {**_echo(body, conversation), "model": model, "store": stored}
        self._warnings = warnings
        self._error: Json | None = None
        self._reason: str | None = None
        self._usage: Json | None = None
        self._extras: Json = {}

    def note(self, item: Generation) -> None:
        """Takes note of what the engine did otherwise than asked."""
        self._warnings += item.warnings

    def finish(self, step: Step, own: Json) -> None:
        """Takes in the last step, and fields of ours."""
        finish = step.item.finish_reason
        assert finish is not None
        cut = finish.kind == "length"
        self.status, self._reason = ("incomplete", "max_output_tokens") if cut else ("completed", None)
        self._completed_s = None if cut else int(time.time())
        self._usage = _usage(step)
        self._extras = {"sgl": own} if own else {}

    def fail(self, error: SglError) -> None:
        """Takes in why there is no more to come."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.status, self._error = "failed", {"code": code, "message": error.message}

    def render(self, output: Sequence[Json]) -> Json:
        """The response object."""
        warned = {"warnings": list(dict.fromkeys(self._warnings))} if self._warnings else {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_s,
            "completed_at": self._completed_s,
            "status": self.status,
            "error": self._error,
            "incomplete_details": None if self._reason is None else {"reason": self._reason},
            "output": list(output),
            "usage": self._usage,
            **self._asked,
            **warned,
            **self._extras,
        }


def _usage(step: Step) -> Json:
    item = step.item
    return {
        "input_tokens": item.prompt_tokens,
        "input_tokens_details": {"cached_tokens": item.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": item.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": step.num_reasoning},
        "total_tokens": item.prompt_tokens + item.completion_tokens,
    }


def _echo(body: ResponsesBody, conversation: Conversation) -> Json:
    """The fields of a request that its response repeats, with the defaults that were taken."""
    sampling = conversation.request.sampling
    text, reasoning = body.text or TextConfig(), body.reasoning or ReasoningConfig()
    choice = body.tool_choice or "auto"
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "temperature": sampling.temperature,
        "text": {"format": _given(text.format or TextFormat(type="text")), "verbosity": "medium"},
        "tool_choice": choice if isinstance(choice, str) else _given(choice),
        "tools": [
            {"type": "function", "description": None, "parameters": None, **_tool(tool)} for tool in read_tools(body)
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _tool(tool: msgspec.Struct) -> Json:
    return {"strict": False, **_given(tool)}


def _given(value: msgspec.Struct) -> Json:
    """The fields that are set."""
    return {name: field for name, field in msgspec.structs.asdict(value).items() if field is not None}
