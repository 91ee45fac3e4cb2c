"""Checks chat messages and evens out what clients send differently; the chat template does the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl.engine.base.errors import SglError

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAY_BE_EMPTY = ("assistant", "tool")


def normalise(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with known roles and nothing but text content; further keys stay for the template.

    Raises:
        SglError: 400 naming the message at fault.
    """
    if not messages:
        raise SglError("`messages` must not be empty.", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}, got {_shown(role)}")
    if isinstance(content, list):
        for i, part in enumerate(content):
            _check_part(part, f"{where}.content[{i}]")
    elif content is None and not calls and role not in _MAY_BE_EMPTY:
        raise _wrong(f"{where}.content", "is required")
    elif content is not None and not isinstance(content, str):
        raise _wrong(f"{where}.content", f"must be a string or a list of parts, got {_shown(content)}")
    result = {**message, "role": "system" if role == "developer" else role}
    if calls is not None:
        result["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    return result


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _wrong(f"{where}.type", f"must be text, got {_shown(kind)}; this server takes no other content yet")
    if not isinstance(part.get("text"), str):
        raise _wrong(f"{where}.text", f"must be a string, got {_shown(part.get('text'))}")


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """A list of calls; SGLang's documentation also sends one bare ``{"name", "arguments"}``."""
    listed = [{"type": "function", "function": calls}] if isinstance(calls, dict) else calls
    if not isinstance(listed, list):
        raise _wrong(where, f"must be a list of calls, got {_shown(calls)}")
    for i, call in enumerate(listed):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(f"{where}[{i}].function.name", "must be a string")
    return listed


def _shown(value: Any) -> str:
    return f"{value!r:.40}"


def _wrong(where: str, what: str) -> SglError:
    return SglError(f"`{where}` {what}.", param=where)
