"""One request's way through its grammar: a library's matcher and what ends the output; fills masks for many at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import LIMITED, UNSETTLED, HostDraws
from sgl.engine.core.grammar import Standing
from sgl.engine.grammar.backend import Backend, Matcher
from sgl.engine.grammar.vocabulary import Vocabulary

Bits = NDArray[np.uint8]
Answer: TypeAlias = bytes | SglError | None
"""A mask, why there is none, or that it is to be asked for again in another step."""


class ConstrainedState:
    """
    Args:
        kind: of the grammar, for messages.
        ends: the tokens that end an output.
        banned: tokens that must not come although their text would fit.
    """

    __slots__ = ("_standing", "backend", "banned", "ends", "forced", "is_ahead", "kind", "matcher", "unclear")

    def __init__(self, backend: Backend, matcher: Matcher, kind: str, ends: TokenSet, banned: TokenSet) -> None:
        self.backend = backend
        self.matcher = matcher
        self.kind = kind
        self.ends = ends
        self.banned = banned
        self.unclear = banned.ids if backend.settles_ends else ends.ids | banned.ids
        self.is_ahead = False  # of what has been accepted, by the token that was settled
        self.forced, self._standing = matcher.forced, matcher.standing  # this one is called for every token

    def accept(self, token_id: int) -> Standing:
        if self.is_ahead:
            self.is_ahead = False
        else:
            self.matcher.accept(token_id)
        return self._standing()


@dataclass(frozen=True)
class TokenSet:
    """Tokens, and the same as bits in the words of a mask, least significant first."""

    ids: frozenset[int]
    bits: Bits

    @classmethod
    def of(cls, token_ids: Collection[int], vocabulary: Vocabulary) -> TokenSet:
        ids = frozenset(token_id for token_id in token_ids if token_id < vocabulary.end_id)
        bits = np.zeros(vocabulary.mask_words * 4, np.uint8)
        for token_id in ids:
            bits[token_id >> 3] |= 1 << (token_id & 7)
        return cls(ids, bits)


class Group:
    """States that go on together, for as many steps as their requests run together."""

    def __init__(self, states: Sequence[ConstrainedState]) -> None:
        self.states = list(states)
        self._rows = {
            backend: [row for row, state in enumerate(states) if state.backend is backend]
            for backend in {state.backend for state in states}
        }
        self._matchers = {backend: [states[row].matcher for row in rows] for backend, rows in self._rows.items()}
        self._limited: list[ConstrainedState] = []
        self._has_unclear = any(state.unclear for state in states)

    def settle(self, draws: HostDraws) -> int:
        """Finds the tokens that come next, as far as the backends tell (see `Masks`)."""
        tokens = draws.token_ids
        if self._has_unclear:
            for state, draw in zip(self.states, draws.draws, strict=True):
                if tokens[draw] in state.unclear:
                    tokens[draw] = UNSETTLED
        left = sum([backend.settle(matchers, part) for backend, matchers, part in self._parts(draws)])
        if not left:
            for state in self.states:
                state.is_ahead = True
            return 0
        told = tokens[:]
        self._limited = []
        for state, draw in zip(self.states, draws.draws, strict=True):
            token_id = told[draw]
            state.is_ahead = token_id >= 0
            if token_id == LIMITED:
                self._limited.append(state)
        return left

    def advance(self, draws: HostDraws) -> None:
        """Goes on with the tokens that were drawn since from what has been limited."""
        for backend, matchers, part in self._parts(draws):
            backend.advance(matchers, part)
        for state in self._limited:
            state.is_ahead = True

    def _parts(self, draws: HostDraws) -> Iterable[tuple[Backend, list[Matcher], HostDraws]]:
        if len(self._rows) == 1:
            return [(backend, matchers, draws) for backend, matchers in self._matchers.items()]
        return [
            (backend, self._matchers[backend], draws._replace(draws=[draws.draws[row] for row in rows]))
            for backend, rows in self._rows.items()
        ]


def fill_masks(states: Sequence[ConstrainedState], vocabulary: Vocabulary) -> list[Answer]:
    """What may follow in each state, by token of the model; or why there is no mask."""
    masks = np.zeros((len(states), vocabulary.mask_words), np.int32)
    backends = {state.backend for state in states}
    deferred: set[int] = set()
    for backend in backends:
        if len(backends) == 1:
            deferred.update(backend.fill([state.matcher for state in states], masks))
        else:
            rows = [row for row, state in enumerate(states) if state.backend is backend]
            part = np.zeros((len(rows), vocabulary.mask_words), np.int32)
            deferred.update(rows[index] for index in backend.fill([states[row].matcher for row in rows], part))
            masks[rows] = part
    found = _finished(states, masks.view(np.uint8), vocabulary.end_id)
    return [None if row in deferred else answer for row, answer in enumerate(found)] if deferred else found


def _finished(states: Sequence[ConstrainedState], masks: Bits, end_id: int) -> list[Answer]:
    """The libraries' masks, with the tokens that end each output in place of the libraries' own."""
    place, bit = end_id >> 3, 1 << (end_id & 7)
    text, width = masks.tobytes(), masks.shape[1]
    found: list[Answer] = []
    for row, state in enumerate(states):
        mask = text[row * width : (row + 1) * width]
        may_end = mask[place] & bit
        found.append(_corrected(state, masks[row], may_end, place) if may_end or state.banned.ids else mask)
    return found


def _corrected(state: ConstrainedState, mask: Bits, end: int, place: int) -> bytes | SglError:
    """Only a matcher that allows the end can have an error: that is what every backend writes then."""
    mask &= ~state.banned.bits
    if end:
        mask[place] &= ~end & 0xFF
        mask |= state.ends.bits
        error = state.matcher.error()
        if error is not None:
            message = f"The {state.kind} cannot be followed any further: {error}."
            return SglError(message, code="grammar_too_complex", param=state.kind)
    return mask.tobytes()
