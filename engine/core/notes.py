"""Who is told of every step: the ledgers of requests, what it computed and when; a profiler, that it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sgl.engine.base.ledger import Chunk, Hold, StepNote
from sgl.engine.base.types import Row, StepPlan
from sgl.engine.core.scheduler import Scheduler


class StepWatch(Protocol):
    """Follows the steps, to record them."""

    def before(self, plan: StepPlan) -> None:
        """This is going to be computed."""

    def after(self) -> None:
        """A round of the loop is over, whether it had something to compute or not."""

    def close(self) -> None: ...


class NullWatch:
    """Records nothing."""

    def before(self, plan: StepPlan) -> None:
        pass

    def after(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of a step before its results."""

    step_id: int = 0
    begin_s: float = 0.0
    planned_s: float = 0.0
    forwarded_s: float = 0.0
    num_decodes: int = 0
    chunks: tuple[Chunk, ...] = ()
    hold: Hold = Hold.NOTHING


class Notes(Protocol):
    def forwarded(self, plan: StepPlan, begin_s: float, planned_s: float) -> Draft:
        """The model has computed a plan, or has begun to where that goes on beside the host."""

    def finished(self, draft: Draft) -> StepNote | None:
        """The results of that step are there; None if nobody wants to know."""


class NoNotes:
    """Writes nothing down."""

    _DRAFT = Draft()

    def forwarded(self, plan: StepPlan, begin_s: float, planned_s: float) -> Draft:
        return self._DRAFT

    def finished(self, draft: Draft) -> StepNote | None:
        return None


class StepNotes:
    """
    Args:
        clock: the loop's.
        is_beside: whether steps go on beside the host, so that only their ends are known.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float], *, is_beside: bool) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._is_beside = is_beside

    def forwarded(self, plan: StepPlan, begin_s: float, planned_s: float) -> Draft:
        rows = plan.rows
        chunks = tuple([self._chunk(row) for row in rows if row.init is not None or row.num_tokens > 1 + row.num_draft])
        num_decodes = len(rows) - len(chunks)
        return Draft(plan.step_id, begin_s, planned_s, self._clock(), num_decodes, chunks, self._scheduler.hold)

    def _chunk(self, row: Row) -> Chunk:
        num_tokens = row.num_tokens - row.num_draft
        if row.init is None:
            return Chunk(row.rid, num_tokens)
        state = self._scheduler.state_of(row.rid)  # of the newest plan, so it has not ended
        return Chunk(row.rid, num_tokens, row.computed or 0, state.added_s, state.grammar_time_s)

    def finished(self, draft: Draft) -> StepNote:
        end_s = self._clock()
        return StepNote(
            draft.step_id,
            draft.begin_s,
            draft.planned_s,
            end_s if self._is_beside else draft.forwarded_s,
            end_s,
            draft.num_decodes,
            draft.chunks,
            int(draft.hold),
        )
