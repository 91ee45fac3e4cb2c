"""Where answers come from: the protocol that a chat speaks, and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from sgl.cli.chat_session import Params
from sgl.engine.base.errors import SglError


@dataclass(frozen=True)
class Piece:
    """A part of an answer. Counts are totals so far; None where the backend does not tell."""

    text: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class ContextFullError(SglError):
    """The conversation does not fit the model's context any more."""


class Backend(Protocol):
    """A model, here or elsewhere."""

    @property
    def model(self) -> str:
        """Its name, for people."""
        ...

    def stream(self, messages: list[dict[str, str]], params: Params) -> AsyncGenerator[Piece, None]:
        """Answers; closing the iterator stops the answer.

        Raises:
            ContextFullError: before the first piece.
            SglError: at any time; the pieces so far stay good.
        """
        ...

    async def close(self) -> None: ...
