"""What an engine tells of its steps, so that every request can be told where its time went; small and plain data.

All times are of `time.monotonic`, one clock for all processes of a machine.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass

import msgspec


class Hold(enum.IntEnum):
    """What kept requests in the queue when a step was planned."""

    NOTHING = 0
    BUDGET = 1  # the step had its tokens
    SLOTS = 2
    MEMORY = 3
    PAUSE = 4  # weights are being exchanged


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row of a step that computed several tokens, or was the first in its slot.

    Args:
        rid: as the engine knows the request.
        num_cached: tokens that came from the prefix cache, if the row was the first in its slot.
        added_s: when the engine took the request in, if the row was the first in its slot; else 0.
        grammar_s: how long its grammar was waited for.
    """

    rid: str
    num_tokens: int
    num_cached: int = 0
    added_s: float = 0.0
    grammar_s: float = 0.0


class StepNote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step.

    Args:
        begin_s: before it was planned; ``planned_s`` after that.
        forwarded_s: when its model had computed, ``end_s`` if that happens beside the host.
        end_s: when its results were there.
        num_decodes: rows that computed one token of a request which was running already.
        hold: what kept requests in the queue, a `Hold`.
    """

    step_id: int
    begin_s: float
    planned_s: float
    forwarded_s: float
    end_s: float
    num_decodes: int
    chunks: tuple[Chunk, ...] = ()
    hold: int = 0

    @property
    def num_rows(self) -> int:
        return self.num_decodes + len(self.chunks)

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum([chunk.num_tokens for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long a step takes: so much, and so much more for every token that it computes."""

    step_s: float
    token_s: float

    def seconds(self, num_tokens: int) -> float:
        return self.step_s + num_tokens * self.token_s


class StepTimeFit:
    """Least squares over the steps seen so far; the newest thousand count most."""

    _KEPT = 0.999

    def __init__(self) -> None:
        self._count = self._x = self._y = self._xx = self._xy = 0.0
        self.num_seen = 0

    def add(self, num_tokens: int, seconds: float) -> None:
        kept = self._KEPT
        self._count = self._count * kept + 1.0
        self._x = self._x * kept + num_tokens
        self._y = self._y * kept + seconds
        self._xx = self._xx * kept + num_tokens * num_tokens
        self._xy = self._xy * kept + num_tokens * seconds
        self.num_seen += 1

    def value(self) -> StepTime:
        """Neither part is negative; steps that are all alike say nothing about tokens."""
        if not self._count:
            return StepTime(0.0, 0.0)
        spread = self._xx - self._x * self._x / self._count
        if spread <= 1e-6 * self._xx:
            return StepTime(self._y / self._count, 0.0)
        token_s = max((self._xy - self._x * self._y / self._count) / spread, 0.0)
        step_s = (self._y - token_s * self._x) / self._count
        return StepTime(step_s, token_s) if step_s >= 0 else StepTime(0.0, self._xy / self._xx)


@dataclass(slots=True)
class Passage:
    """An HTTP request on its way through the server.

    Args:
        sent_s: when the last byte of its answer had been handed to the network; 0 before.
    """

    received_s: float
    sent_s: float = 0.0


passage: ContextVar[Passage | None] = ContextVar("passage", default=None)
"""Of the HTTP request that the current task works for; only ledgers may depend on it."""
