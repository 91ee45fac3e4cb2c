"""The dialogue type that all skills yield, and the rule that splits dialogues into training and held-out ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass
class Dialogue:
    """One chat; `key` names its combination of phrasing and content and decides its split."""

    key: str
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def user(content: str) -> Message:
    """Return a user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": content}


def exchange(key: str, prompt: str, reply: str) -> Dialogue:
    """Return a dialogue of one prompt and one reply."""
    return Dialogue(key, [user(prompt), assistant(reply)])


def is_held_out(key: str) -> bool:
    """Return whether a combination belongs to the held-out tenth."""
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] < 26
