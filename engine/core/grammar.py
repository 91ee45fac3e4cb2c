"""What the scheduler needs of grammars; the backends that compile and run them live elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, HostLogits


class GrammarState(Protocol):
    """Progress of one request through its grammar."""

    def accept(self, token_id: int, /) -> object:
        """Advances over a generated token."""

    def forced(self) -> Sequence[int]:
        """The tokens that come next in any case, as far as that is known without a mask."""

    def terminated(self) -> bool:
        """Whether the output is complete and nothing may follow."""


class GrammarTicket(Protocol):
    """A grammar that is being compiled."""

    def poll(self) -> GrammarState | None:
        """A fresh state, or None while there is none yet.

        Raises:
            SglError: the grammar cannot be compiled.
        """


class GrammarCompiler(Protocol):
    """Compiles grammars beside the loop and fills their masks."""

    def compile(self, grammar: Grammar, end_ids: frozenset[int]) -> GrammarTicket:
        """Begins to compile; ``end_ids`` are the tokens that end an output which is complete."""

    def settle(
        self, states: Sequence[GrammarState], likeliest: Sequence[int], logits: HostLogits | None, /
    ) -> list[int]:
        """The tokens that come next, as far as that can be told without a mask (see `Masks`); -1 if it cannot.

        Advances over them; the `accept` that follows is about the same token and does nothing.
        """

    def masks(self, states: Sequence[GrammarState]) -> list[bytes | SglError]:
        """What may follow in each state: one bit per vocabulary entry, least significant bit first; or why none can."""

    def close(self) -> None:
        """Ends what runs beside the loop."""


class StepMasks:
    """The `Masks` of one step, each filled when it is read.

    Args:
        states: by row.
        fail: told of a row whose mask there is none of; the row may then sample anything or nothing.

    Attributes:
        filled: what has been read.
        forced: by row, tokens that came without a mask though they were not the likeliest.
    """

    def __init__(
        self, states: Mapping[int, GrammarState], compiler: GrammarCompiler, fail: Callable[[int, SglError], None]
    ) -> None:
        self._states, self._compiler, self._fail = states, compiler, fail
        self.filled: dict[int, bytes] = {}
        self.forced: dict[int, int] = {}
        self._settled: list[tuple[Sequence[int], list[int]]] = []

    @property
    def rows(self) -> Collection[int]:
        return self._states

    @property
    def advanced(self) -> Collection[int]:
        """The rows whose grammar is a token ahead of what has been reported."""
        return [row for rows, ids in self._settled for row, token_id in zip(rows, ids, strict=True) if token_id >= 0]

    def settle(self, rows: Sequence[int], likeliest: Sequence[int], logits: HostLogits | None = None, /) -> list[int]:
        settled = self._compiler.settle([self._states[row] for row in rows], likeliest, logits)
        self._settled.append((rows, settled))
        if settled != likeliest:
            for row, told, token_id in zip(rows, likeliest, settled, strict=True):
                if token_id not in (told, -1):
                    self.forced[row] = token_id
        return settled

    def read(self, rows: Sequence[int]) -> list[bytes]:
        for row, mask in zip(rows, self._compiler.masks([self._states[row] for row in rows]), strict=True):
            if isinstance(mask, SglError):
                self._fail(row, mask)
            else:
                self.filled[row] = mask
        return [self.filled.get(row, b"") for row in rows]


class NoGrammars:
    """Refuses every grammar: the engine has no vocabulary or no backend for them."""

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def compile(self, grammar: Grammar, end_ids: frozenset[int]) -> GrammarTicket:
        return _Refusal(SglError(self._reason, param=grammar.kind))

    def settle(
        self, states: Sequence[GrammarState], likeliest: Sequence[int], logits: HostLogits | None, /
    ) -> list[int]:
        raise AssertionError("no request has a grammar")

    def masks(self, states: Sequence[GrammarState]) -> list[bytes | SglError]:
        raise AssertionError("no request has a grammar")

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Refusal:
    error: SglError

    def poll(self) -> GrammarState | None:
        raise self.error
