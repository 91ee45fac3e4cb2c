"""What the scheduler needs of a grammar; the backends that compile and run them live elsewhere."""

from __future__ import annotations

from typing import Protocol

from sgl.engine.base.types import Grammar


class GrammarState(Protocol):
    """Progress of one request through its grammar."""

    def mask(self) -> bytes:
        """Allowed next tokens, one bit per vocabulary entry, least significant bit first."""

    def accept(self, token_id: int) -> None:
        """Advances over a generated token."""

    def terminated(self) -> bool:
        """Whether the output is complete and nothing may follow."""


class GrammarCompiler(Protocol):
    """Turns a request's grammar into a fresh state; raises SglError for one that cannot be compiled."""

    def compile(self, grammar: Grammar) -> GrammarState: ...
