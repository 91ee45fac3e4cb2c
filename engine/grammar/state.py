"""One request's way through its grammar: a library's matcher and what ends the output; fills masks for many at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import HostLogits
from sgl.engine.grammar.backend import Backend, Matcher
from sgl.engine.grammar.vocabulary import Vocabulary

Bits = NDArray[np.uint8]


class ConstrainedState:
    """
    Args:
        kind: of the grammar, for messages.
        ends: the tokens that end an output.
        banned: tokens that must not come although their text would fit.
    """

    __slots__ = ("backend", "banned", "ends", "forced", "is_ahead", "kind", "matcher", "terminated", "unclear")

    def __init__(self, backend: Backend, matcher: Matcher, kind: str, ends: TokenSet, banned: TokenSet) -> None:
        self.backend = backend
        self.matcher = matcher
        self.kind = kind
        self.ends = ends
        self.banned = banned
        self.unclear = banned.ids if backend.settles_ends else ends.ids | banned.ids
        self.is_ahead = False  # of what has been accepted, by the token that was settled
        # The matcher's own: these are called for every token.
        self.forced = matcher.forced
        self.terminated = matcher.finished

    def accept(self, token_id: int) -> None:
        if not self.is_ahead:
            self.matcher.accept(token_id)
        self.is_ahead = False


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
        self._has_unclear = any(state.unclear for state in states)

    def settle(self, likeliest: Sequence[int], logits: HostLogits | None) -> list[int]:
        """The tokens that come next, as far as the backends tell; -1 where they do not."""
        if self._has_unclear:
            pairs = zip(likeliest, self.states, strict=True)
            likeliest = [-1 if token_id in state.unclear else token_id for token_id, state in pairs]
        if len(self._rows) == 1:
            ((backend, matchers),) = self._matchers.items()
            settled = backend.settle(matchers, likeliest, logits)
        else:
            settled = self._settle_parts(likeliest, logits)
        for state, token_id in zip(self.states, settled, strict=True):
            state.is_ahead = token_id >= 0
        return settled

    def _settle_parts(self, likeliest: Sequence[int], logits: HostLogits | None) -> list[int]:
        settled = [-1] * len(self.states)
        for backend, rows in self._rows.items():
            part = logits and logits._replace(draws=[logits.draws[row] for row in rows])
            found = backend.settle(self._matchers[backend], [likeliest[row] for row in rows], part)
            for row, token_id in zip(rows, found, strict=True):
                settled[row] = token_id
        return settled


def fill_masks(states: Sequence[ConstrainedState], vocabulary: Vocabulary) -> list[bytes | SglError]:
    """What may follow in each state, by token of the model; or why none can."""
    masks = np.zeros((len(states), vocabulary.mask_words), np.int32)
    backends = {state.backend for state in states}
    for backend in backends:
        if len(backends) == 1:
            backend.fill([state.matcher for state in states], masks)
        else:
            rows = [row for row, state in enumerate(states) if state.backend is backend]
            part = np.zeros((len(rows), vocabulary.mask_words), np.int32)
            backend.fill([states[row].matcher for row in rows], part)
            masks[rows] = part
    return _finished(states, masks.view(np.uint8), vocabulary.end_id)


def _finished(states: Sequence[ConstrainedState], masks: Bits, end_id: int) -> list[bytes | SglError]:
    """The libraries' masks, with the tokens that end each output in place of the libraries' own."""
    place, bit = end_id >> 3, 1 << (end_id & 7)
    text, width = masks.tobytes(), masks.shape[1]
    found: list[bytes | SglError] = []
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
