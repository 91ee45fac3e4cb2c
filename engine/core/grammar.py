"""What the scheduler needs of grammars; the backends that compile and run them live elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import UNSETTLED, Grammar, HostDraws

Standing = Literal[0, 1, 2]
"""What is known of an output without a mask: nothing, that nothing may follow, or that `forced` is worth asking."""

OPEN: Standing = 0
OVER: Standing = 1
FORCED: Standing = 2


class GrammarState(Protocol):
    """Progress of one request through its grammar.

    While it ``is_ahead`` it has taken in a token that has not been reported yet: the `accept` that follows is about
    that one and changes nothing.
    """

    @property
    def is_ahead(self) -> bool: ...

    def accept(self, token_id: int, /) -> Standing:
        """Advances over a generated token."""

    def forced(self) -> Sequence[int]:
        """The tokens that come next in any case, as far as that is known without a mask."""


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

    def settle(self, states: Sequence[GrammarState], draws: HostDraws, /) -> int:
        """Finds the tokens that come next, as far as that can be told without a mask (see `Masks`)."""

    def advance(self, states: Sequence[GrammarState], draws: HostDraws, /) -> None:
        """Goes on with what was drawn from logits that `settle` has limited, for the same states."""

    def masks(self, states: Sequence[GrammarState]) -> list[bytes | SglError | None]:
        """What may follow in each state: one bit per vocabulary entry, least significant bit first; or why none can.

        None where this step has no time for it: the request goes on in a later one.
        """

    def close(self) -> None:
        """Ends what runs beside the loop."""


class StepMasks:
    """The `Masks` of one step, each filled when it is read.

    Args:
        states: by row.
        fail: told of a row whose mask there is none of, and why; without a reason, the row is to sample again. It may
            now sample anything or nothing.
        is_recorded: whether a replay shall find out again what came. Then no grammar chooses among logits, where its
            mask would remain unseen.

    Attributes:
        filled: what has been read.
        forced: by row, tokens that came without a mask though they were not the likeliest: the only ones that may.
    """

    def __init__(
        self,
        states: Mapping[int, GrammarState],
        compiler: GrammarCompiler,
        fail: Callable[[int, SglError | None], None],
        is_recorded: bool = False,
    ) -> None:
        self._states, self._compiler, self._fail, self._is_recorded = states, compiler, fail, is_recorded
        self.filled: dict[int, bytes] = {}
        self.forced: dict[int, int] = {}

    @property
    def rows(self) -> Collection[int]:
        return self._states

    @property
    def advanced(self) -> Collection[int]:
        """The rows whose grammar is a token ahead of what has been reported."""
        return [row for row, state in self._states.items() if state.is_ahead]

    def settle(self, rows: Sequence[int], draws: HostDraws, /) -> int:
        states = self._of(rows)
        if not self._is_recorded:
            return self._compiler.settle(states, draws)
        likeliest = [draws.token_ids[draw] for draw in draws.draws]
        left = self._compiler.settle(states, draws._replace(logits=0))
        for row, draw, told in zip(rows, draws.draws, likeliest, strict=True):
            if draws.token_ids[draw] not in (told, UNSETTLED):
                self.forced[row] = draws.token_ids[draw]
        return left

    def advance(self, rows: Sequence[int], draws: HostDraws, /) -> None:
        self._compiler.advance(self._of(rows), draws)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        for row, mask in zip(rows, self._compiler.masks(self._of(rows)), strict=True):
            if not isinstance(mask, bytes):
                self._fail(row, mask)
            self.filled[row] = mask if isinstance(mask, bytes) else b""
        return [self.filled[row] for row in rows]

    def _of(self, rows: Sequence[int]) -> list[GrammarState]:
        return [self._states[row] for row in rows]


class NoGrammars:
    """Refuses every grammar: the engine has no vocabulary or no backend for them."""

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    def compile(self, grammar: Grammar, end_ids: frozenset[int]) -> GrammarTicket:
        return _Refusal(SglError(self._reason, param=grammar.kind))

    def settle(self, states: Sequence[GrammarState], draws: HostDraws, /) -> int:
        raise AssertionError("no request has a grammar")

    def advance(self, states: Sequence[GrammarState], draws: HostDraws, /) -> None:
        raise AssertionError("no request has a grammar")

    def masks(self, states: Sequence[GrammarState]) -> list[bytes | SglError | None]:
        raise AssertionError("no request has a grammar")

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Refusal:
    error: SglError

    def poll(self) -> GrammarState | None:
        raise self.error
