"""The step loop: schedules, executes and reports; it knows executors by their protocol and builds nothing."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

from sgl.engine.base.errors import OutOfMemoryError, SglError
from sgl.engine.base.ledger import StepNote
from sgl.engine.base.trace import span
from sgl.engine.base.types import (
    Abort,
    Add,
    Call,
    Executor,
    FinishReason,
    Inbound,
    Outbound,
    Output,
    Outputs,
    Request,
    Shutdown,
    StepPlan,
    StepResult,
)
from sgl.engine.core.grammar import StepMasks
from sgl.engine.core.notes import Draft, NoNotes, Notes, NullWatch, StepNotes, StepWatch
from sgl.engine.core.operations import Operation, Operations
from sgl.engine.core.record import NullRecorder, RecordedStep, Recorder
from sgl.engine.core.reporter import Reporter
from sgl.engine.core.request import refusal
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
"""How long an idle loop sleeps in its inbox before it shows a sign of life."""

BUSY_WAIT_S = 0.01
"""The same while an operation goes on that the inbox brings no news of."""

COMPILE_WAIT_S = 0.002
"""The same while there is nothing to do but wait for a grammar."""


class Inbox(Protocol):
    def drain(self, timeout_s: float) -> list[Inbound]:
        """All messages that are there; waits up to ``timeout_s`` for the first one."""


class Outbox(Protocol):
    def send(self, message: Outbound) -> None: ...


@dataclass(frozen=True)
class _Pending:
    """A step whose result is still on its way."""

    plan: StepPlan
    masks: StepMasks
    result: StepResult
    draft: Draft


class EngineLoop:
    """Runs one scheduler over one executor until it is told to shut down.

    Args:
        overlap: 1 lets the device work on a step while the results of the one before are processed, 0 does not.
        info: what the front process needs to know about the model; answered to the call ``info``.
        clock: seconds, monotonic; virtual in simulations.
        operations: what calls may ask for beside ``info``, ``flush_cache`` and ``pages``, by name.
        check: raises SglError for a request that cannot be taken.
        watch: told of every step.
        tells_steps: whether a note on each step goes with its outputs, for the ledgers of requests.
        prepare: does one thing that makes later steps faster, called while there are none; False if none is left.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        inbox: Inbox,
        outbox: Outbox,
        *,
        overlap: int = 0,
        info: dict[str, Any] | None = None,
        recorder: Recorder | None = None,
        log_interval: int = 40,
        clock: Callable[[], float] = time.monotonic,
        operations: Mapping[str, Operation] | None = None,
        check: Callable[[Request], None] = lambda request: None,
        watch: StepWatch | None = None,
        tells_steps: bool = False,
        prepare: Callable[[], bool] = lambda: False,
    ) -> None:
        self.scheduler = scheduler
        self.info = info or {}
        self._check = check
        self._watch = watch or NullWatch()
        self._notes: Notes = StepNotes(scheduler, clock, is_beside=overlap > 0) if tells_steps else NoNotes()
        own: dict[str, Operation] = {
            "info": lambda: self.info,
            "flush_cache": lambda: {"success": self.scheduler.flush_cache()},
            "pages": self._pages,
            "reschedule": partial(self._reschedule, scheduler.config, overlap),
        }
        self._operations = Operations({**own, **(operations or {})})
        self._executor = executor
        self._inbox = inbox
        self._outbox = outbox
        self._overlap = overlap
        self._recorder = recorder or NullRecorder()
        self._clock = clock
        self._pending: deque[_Pending] = deque()
        self._stopping = False
        self._reporter = Reporter(scheduler, log_interval, clock)
        self._prepare = prepare
        self._is_prepared = False

    def run(self) -> None:
        """Steps until a `Shutdown` message; requests still known then are aborted."""
        farewell = "The engine broke down; see its log."
        try:
            while not self._stopping:
                self.receive(self._patience_s())
                with span("step"):
                    progressed = self.step()
                if not progressed:
                    self.rest()
                self._watch.after()
                self._send_stats()
            farewell = "The engine is shutting down."
        finally:
            self._finish_requests(farewell)
            self._watch.close()
            self.scheduler.close()
            self._recorder.close()
            self._executor.close()

    def step(self) -> bool:
        """Plans and starts one step and takes in what older steps have brought; False if there was nothing to do."""
        self._go_on()
        begin_s = self._clock()
        with span("schedule"):
            plan = self.scheduler.schedule(begin_s)
        planned_s = self._clock()
        masks: StepMasks | None = None
        try:
            if plan.rows:
                self._watch.before(plan)
                with span("forward"):
                    self._executor.forward(plan)
            progressed = self._collect(self._overlap - 1 if plan.rows else 0)
            if plan.rows:
                draft = self._notes.forwarded(plan, begin_s, planned_s)
                with span("sample"):
                    masks = self.scheduler.masks(self._recorder.keeps_masks)
                    self._pending.append(_Pending(plan, masks, self._executor.sample(plan, masks), draft))
                self._collect(self._overlap)
        except OutOfMemoryError as error:
            shortage = error.message
        except Exception:
            logger.exception("step %d failed", plan.step_id)
            self._pending.clear()
            self._send(self.scheduler.fail("An internal error ended this step; the request can be sent again."))
            return True
        else:
            self._reporter.note(plan)
            return bool(plan.rows) or progressed
        # Out of memory; outside of its clause, where the error holds on to the tensors of the frames it went through.
        self._collect(0)
        self._send(self.scheduler.retract(shortage, masks.advanced if masks is not None else ()))
        return True

    def rest(self) -> bool:
        """Makes use of a moment without work; False if there is nothing left to prepare, or work after all."""
        if self._is_prepared or self.scheduler.has_work or self._operations.is_busy:
            return False
        self._is_prepared = not self._prepare()
        return not self._is_prepared

    def wrap_executor(self, wrap: Callable[[Executor], Executor]) -> None:
        """Has something stand between the loop and its executor, to measure it."""
        self._executor = wrap(self._executor)

    def _go_on(self) -> None:
        """Takes in what has happened beside the steps."""
        self._send(self.scheduler.poll_grammars(self._clock()))
        if self._operations.is_busy:
            outputs, replies = self._operations.advance(self._clock())
            self._send(outputs)
            for reply in replies:
                self._outbox.send(reply)
            if replies:  # other weights, perhaps, for which nothing is prepared
                self._is_prepared = False

    def _patience_s(self) -> float:
        """How long the inbox may be waited for."""
        if self.scheduler.only_compiles:
            return COMPILE_WAIT_S
        if self._operations.is_busy:
            return 0.0 if self.scheduler.is_runnable else BUSY_WAIT_S
        return 0.0 if self.scheduler.has_work or not self._is_prepared else IDLE_WAIT_S

    def _collect(self, leave: int) -> bool:
        """Takes in the oldest results until at most ``leave`` steps are in flight."""
        progressed = False
        while len(self._pending) > max(leave, 0):
            pending = self._pending.popleft()
            with span("result"):
                results = pending.result.wait()
            with span("update"):
                self._recorder.write(RecordedStep(pending.plan, pending.masks.filled, results, pending.masks.forced))
                self._reporter.count(sum(len(result.token_ids) for result in results))
                self._send(self.scheduler.update(results), self._notes.finished(pending.draft))
            progressed = True
        return progressed

    def receive(self, timeout_s: float) -> None:
        """Takes in what has come; waits up to ``timeout_s`` for the first message."""
        for message in self._inbox.drain(timeout_s):
            match message:
                case Add(request):
                    self._send(self._add(request))
                case Abort(rid, reason):
                    finish = FinishReason(kind="abort", message=reason, status=499, code="aborted")
                    self._send(self.scheduler.abort(rid, finish))
                case Call() as call:
                    reply = self._operations.start(call)
                    if reply is not None:
                        self._outbox.send(reply)
                case Shutdown():
                    self._stopping = True

    def _add(self, request: Request) -> list[Output]:
        try:
            self._check(request)
        except SglError as error:
            finish = refusal(error)
            return [Output(rid=request.rid, finish=finish, prompt_tokens=len(request.token_ids))]
        return self.scheduler.add(request, self._clock())

    def _reschedule(
        self, given: SchedulerConfig, given_overlap: int, overlap: int | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Schedules otherwise from now on, which must not change an answer; what is not named is as at the start.

        Raises:
            SglError: there are requests, or there is not so much memory.
        """
        config = replace(given, **changes)
        for name in ("num_pages", "max_step_tokens"):
            most = getattr(given, name)
            if not 1 <= getattr(config, name) <= most:
                raise SglError(f"{name} must be between 1 and {most}, got {getattr(config, name)}.", param=name)
        if self.scheduler.has_work:
            raise SglError("An engine is rescheduled only while no request is running or waiting.", status=409)
        self.scheduler.configure(config)
        self._overlap = given_overlap if overlap is None else overlap
        return {"settings": asdict(config), "num_preempted": self.scheduler.num_preempted}

    def _pages(self) -> dict[str, Any]:
        """The page account: every page is free, cached or in use."""
        cache = self.scheduler.cache
        return {"total": cache.num_pages, "free": cache.num_free, "cached": cache.num_cached}

    def _finish_requests(self, message: str) -> None:
        self._send(self.scheduler.abort_all(FinishReason(kind="abort", message=message, status=503, code="shutdown")))

    def _send(self, outputs: list[Output], step: StepNote | None = None) -> None:
        if outputs or step is not None:
            self._outbox.send(Outputs(outputs, step))

    def _send_stats(self) -> None:
        stats = self._reporter.due_stats()
        if stats is not None:
            self._outbox.send(stats)
