"""What becomes of request fields that this server does not act on: refused if they would change the answer, else named
in a warning; and checks of fields that several routes have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sgl.engine.base.errors import SglError

_MAX_WARNINGS = 16
_MAX_METADATA, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512

_EMPTY: Mapping[str, Any] = {"session_params": {}, "custom_logit_processor": ""}

Unsupported = Mapping[str, Callable[[Any], bool]]
"""By field: whether a value of it asks for something that is not there."""


def asks(value: Any) -> bool:
    """Whether a value asks for anything: null, false, empty values and lists of such ask for nothing."""
    if isinstance(value, list):
        return any(map(asks, value))
    return value not in (None, False, "", {})


def asks_beyond(*harmless: Any) -> Callable[[Any], bool]:
    """As `asks`, for a field that has harmless values of its own."""
    return lambda value: asks(value) and value not in harmless


def refuse_unsupported(raw: Mapping[str, Any], unsupported: Unsupported, prefix: str = "") -> None:
    """
    Raises:
        SglError: 400 naming the first field that asks for something that is not there.
    """
    for name, is_asked in unsupported.items():
        if is_asked(raw.get(name)):
            field = prefix + name
            raise SglError(f"`{field}` is not supported by this version.", code="unsupported_field", param=field)


def without_empty(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that SGLang's clients send empty where they mean none."""
    return {name: value for name, value in raw.items() if name not in _EMPTY or value != _EMPTY[name]}


def warn_ignored(raw: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """A warning for each field that asks for something and is not known."""
    ignored = [name for name, value in raw.items() if name not in known and asks(value)]
    return [f"`{name:.64}` has no effect." for name in ignored[:_MAX_WARNINGS]]


def check_metadata(metadata: Mapping[str, str]) -> None:
    """
    Raises:
        SglError: 400; they are too many, or too long.
    """
    if len(metadata) > _MAX_METADATA:
        raise SglError(f"`metadata` must have at most {_MAX_METADATA} entries, got {len(metadata)}.", param="metadata")
    for key, value in metadata.items():
        if not 1 <= len(key) <= _MAX_KEY_CHARS or len(value) > _MAX_VALUE_CHARS:
            text = (
                f"`metadata` takes keys of 1 to {_MAX_KEY_CHARS} and values of at most {_MAX_VALUE_CHARS} characters."
            )
            raise SglError(text, param="metadata")


def checked_text(text: str, param: str) -> str:
    """The text, if it can be part of a prompt.

    Raises:
        SglError: 400; it has a NUL character.
    """
    position = text.find("\0")
    if position >= 0:
        message = f"`{param}` must not have NUL characters (there is one at position {position})."
        raise SglError(message, param=param)
    return text
