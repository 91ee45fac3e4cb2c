"""What a chat consists of: messages, sampling parameters and their file format. No I/O, no terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sgl.engine.base.errors import SglError
from sgl.engine.base.options import closest

Params = dict[str, Any]
FORMAT, VERSION = "sgl-chat", 1


class ChatError(SglError):
    """Something in the chat that the user can mend: a command, a parameter, a file."""


class Message(NamedTuple):
    role: Literal["user", "assistant"]
    content: str


class Parameter(NamedTuple):
    """A sampling parameter that ``/set`` knows; ``low`` and ``high`` are inclusive."""

    kind: type
    low: float
    high: float
    help: str


PARAMETERS: Mapping[str, Parameter] = {
    "temperature": Parameter(float, 0, 10, "0 always takes the most likely token"),
    "top_p": Parameter(float, 0.001, 1, "only tokens within this share of the probability"),
    "top_k": Parameter(int, -1, 2**31, "only so many of the most likely tokens, -1 for all"),
    "min_p": Parameter(float, 0, 1, "only tokens at least this likely relative to the best one"),
    "max_tokens": Parameter(int, 1, 2**31, "longest answer"),
    "frequency_penalty": Parameter(float, -2, 2, "against repeating, by count"),
    "presence_penalty": Parameter(float, -2, 2, "against repeating at all"),
    "repetition_penalty": Parameter(float, 0.01, 2, "against repeating, as a factor"),
    "seed": Parameter(int, 0, 2**31 - 1, "the same seed, the same answer"),
    "stop": Parameter(str, 0, 0, "text that ends the answer"),
}


def parse_parameter(name: str, value: object) -> Any:
    """The value of a sampling parameter from text or JSON.

    Raises:
        ChatError: an unknown name or a value out of bounds.
    """
    known = PARAMETERS.get(name)
    if known is None:
        raise ChatError(f"There is no parameter '{name}'.{closest(name, PARAMETERS)} Known: {', '.join(PARAMETERS)}.")
    if known.kind is str and isinstance(value, str):
        return value
    try:
        number = known.kind(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not known.low <= number <= known.high:
        kind = {float: "a number", int: "an integer", str: "text"}[known.kind]
        raise ChatError(f"{name} must be {kind} between {known.low:g} and {known.high:g}, got {value!r}.")
    return number


@dataclass
class Session:
    """A conversation. ``skipped`` messages at its beginning are kept, but no longer sent: the context is full."""

    system: str = ""
    messages: list[Message] = field(default_factory=list)
    params: Params = field(default_factory=dict)
    skipped: int = 0

    def ask(self, text: str) -> None:
        self.messages.append(Message("user", text))

    def answer(self, text: str) -> None:
        self.messages.append(Message("assistant", text))

    def take_back(self) -> str:
        """Removes the last question and its answer; returns the question, or nothing if there is none."""
        while self.messages:
            message = self.messages.pop()
            self.skipped = min(self.skipped, len(self.messages))
            if message.role == "user":
                return message.content
        return ""

    def reset(self) -> None:
        self.messages.clear()
        self.skipped = 0

    def skip_oldest(self) -> bool:
        """Stops sending the oldest turn; False if only the last question is left."""
        users = [i for i, message in enumerate(self.messages) if message.role == "user" and i > self.skipped]
        if not users:
            return False
        self.skipped = users[0]
        return True

    def to_send(self) -> list[dict[str, str]]:
        """The messages as the OpenAI API takes them."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": m.role, "content": m.content} for m in self.messages[self.skipped :]]

    def to_json(self, model: str) -> str:
        """The file format of ``/save``."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "system": self.system,
            "params": self.params,
            "messages": [message._asdict() for message in self.messages],
        }
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Session:
        """The inverse of `to_json`.

        Raises:
            ChatError: not a session, or one of a later version; ``where`` names it.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ChatError(f"{where} is not JSON: {error}.") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ChatError(f'{where} is not a saved chat: it has no "format": "{FORMAT}".')
        if content.get("version") != VERSION:
            raise ChatError(f"{where} has version {content.get('version')!r}; this sgl reads version {VERSION}.")
        system, params, messages = content.get("system", ""), content.get("params", {}), content.get("messages", [])
        if not isinstance(system, str) or not isinstance(params, dict) or not isinstance(messages, list):
            raise ChatError(f"{where}: system must be text, params an object and messages a list.")
        checked = {name: parse_parameter(name, value) for name, value in params.items()}
        return Session(system, [_message(item, i, where) for i, item in enumerate(messages)], checked)


def _message(item: Any, index: int, where: str) -> Message:
    if isinstance(item, dict) and item.get("role") in ("user", "assistant") and isinstance(item.get("content"), str):
        return Message(item["role"], item["content"])
    raise ChatError(f"{where}: message {index} must have the role user or assistant and a text as content.")
