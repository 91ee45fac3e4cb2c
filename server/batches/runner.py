"""Works batches off: a few lines of each at a time, from wherever a crash or a restart has left them.

What a batch does next follows from its status in the store alone. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Literal

from sgl.engine.base.errors import EngineDiedError, SglError
from sgl.server.batches.database import StorageError, storage_errors
from sgl.server.batches.dispatch import Dispatch, UnreachableError, answered, ask, unanswered
from sgl.server.batches.journal import Journal
from sgl.server.batches.lines import Checker, Limits, Line, Place, Text, parse_line, read_piece
from sgl.server.batches.records import BatchRecord, LineError
from sgl.server.batches.store import Answered, Store
from sgl.server.batches.worker import StoreThread

logger = logging.getLogger(__name__)

_MAX_RUNNING = 8
"""Batches that are worked on at the same time, line by line in turns; others wait."""
_GROUP = 1000
"""Lines without an answer that are kept at a time."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 10.0
_MAX_FAILED = 3
"""How often the engine may fail at a line, which may be the line's fault; while it is busy, a line waits."""

Unfinished = Literal["cancelled", "expired"]
_REASONS: Mapping[Unfinished, tuple[str, str]] = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
    "expired": ("batch_expired", "This request was not answered before the completion window ended."),
}


class Runner:
    """Runs batches of a store.

    Args:
        endpoints: what ``dispatch`` can ask.
        max_in_flight: lines that are asked at the same time, of all batches.
    """

    def __init__(
        self,
        thread: StoreThread,
        dispatch: Dispatch,
        endpoints: Collection[str],
        max_in_flight: int,
        limits: Limits,
    ) -> None:
        self._thread = thread
        self._dispatch = dispatch
        self._endpoints = endpoints
        self._limits = limits
        self._slots = asyncio.Semaphore(max_in_flight)  # first come, first served: batches take turns
        self._places = asyncio.Semaphore(_MAX_RUNNING)
        self._stopping = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by batch: the last that was started
        self._open: set[asyncio.Task[None]] = set()  # also those that are being cancelled

    def start(self, batch: BatchRecord) -> asyncio.Task[None]:
        """Runs a batch to its end, unless it is running.

        The task fails with `UnreachableError` if there is nobody to ask; the batch can then be started again.
        """
        task = self._tasks.get(batch.id)
        if task is None:
            task = self._watch(batch.id, asyncio.create_task(self._run(batch.id)))
        return task

    def cancel(self, batch_id: str) -> None:
        """Ends a batch whose status has just become ``cancelling``: its lines are aborted, its answers stay."""
        running = self._tasks.get(batch_id)
        if running is not None:
            running.cancel()
        self._watch(batch_id, asyncio.create_task(self._run(batch_id, running)))

    async def stop(self) -> None:
        """Aborts what is running, so that it goes on after a restart; answers that are there are kept."""
        self._stopping.set()
        for task in self._tasks.values():
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    def _watch(self, batch_id: str, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks[batch_id] = task
        self._open.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._open.discard(task)
            if self._tasks.get(batch_id) is task:
                del self._tasks[batch_id]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("Batch %s has stopped: %s", batch_id, error)

        task.add_done_callback(ended)
        return task

    async def _run(self, batch_id: str, before: asyncio.Task[None] | None = None) -> None:
        """Takes one step after the other until the status is final; ``before`` must have ended first."""
        if before is not None:
            await asyncio.wait((before,))
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if await self._step(await self._thread.do(Store.batch, batch_id)):
                    return
                pause_s = _FIRST_PAUSE_S
            except StorageError as error:
                logger.warning("Batch %s waits: %s", batch_id, error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            except UnreachableError:
                raise
            except SglError as error:  # the storage has been damaged
                await self._give_up(batch_id, LineError(error.code, error.message))
            except Exception:
                logger.exception("Batch %s cannot go on", batch_id)
                await self._give_up(batch_id, LineError("internal_error", "Internal error; see the server's log."))

    async def _step(self, batch: BatchRecord) -> bool:
        """What a batch of this status does next; whether that was all."""
        match batch.status:
            case "validating":
                async with self._places:
                    await self._validate(batch)
            case "in_progress":
                async with self._places:
                    await self._answer(batch)
            case "finalizing":
                await self._finish(batch, "completed")
            case "cancelling":
                await self._close(batch, "cancelled")
            case _:
                return True
        return False

    async def _validate(self, batch: BatchRecord) -> None:
        path = self._thread.path_of(batch.input_file_id)
        checker = Checker(batch.endpoint, self._endpoints, self._limits)
        place = Place()
        with storage_errors(path):
            after = await asyncio.to_thread(checker.check_piece, path, place)
            while after != place and not checker.has_enough:
                place, after = after, await asyncio.to_thread(checker.check_piece, path, after)
        errors = checker.finish()
        if errors:
            await self._thread.do(Store.advance, batch.id, "failed", total=checker.total, errors=errors)
            logger.info("Batch %s failed: %d of its lines are wrong", batch.id, len(errors))
        else:
            await self._thread.do(Store.advance, batch.id, "in_progress", total=checker.total)

    async def _answer(self, batch: BatchRecord) -> None:
        """Answers what has no answer yet, if the time allows."""
        done = await self._thread.do(Store.answered, batch.id)
        left_s = await self._thread.do(Store.seconds_left, batch)
        try:
            async with asyncio.timeout(left_s), Journal(self._thread, batch.id, self._stopping) as journal:
                await self._answer_lines(batch, done, journal)
        except TimeoutError:
            await self._close(batch, "expired")
        else:
            if not self._stopping.is_set():
                await self._thread.do(Store.advance, batch.id, "finalizing")

    async def _answer_lines(self, batch: BatchRecord, done: Collection[int], journal: Journal) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                place = Place()
                while texts := (piece := await self._read(batch, place))[0]:
                    place = piece[1]
                    for text in texts:
                        if text.number not in done:
                            await journal.reserve()
                            await self._slots.acquire()
                            task = group.create_task(self._answer_line(text, journal))
                            task.add_done_callback(lambda _: self._slots.release())
        except ExceptionGroup as failed:  # all for the same reason, or the first is as good as any
            raise failed.exceptions[0] from None

    async def _answer_line(self, text: Text, journal: Journal) -> None:
        line, pause_s, num_failed = _parse(text), _FIRST_PAUSE_S, 0
        while True:
            try:
                reply = await ask(self._dispatch, line)
                break
            except SglError as error:
                if not error.retryable:
                    raise
                num_failed += error.status == 500 and not isinstance(error, EngineDiedError)
                if num_failed == _MAX_FAILED:
                    journal.put(unanswered(text.number, line.custom_id, error.code, error.message))
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        journal.put(answered(text.number, line, reply))

    async def _close(self, batch: BatchRecord, status: Unfinished) -> None:
        """Ends a batch early: every line without an answer gets an error, so that none is missing."""
        code, message = _REASONS[status]
        done = await self._thread.do(Store.answered, batch.id)
        place, errors = Place(), list[Answered]()
        while batch.total and (texts := (piece := await self._read(batch, place))[0]):
            place = piece[1]
            left = [text for text in texts if text.number not in done]
            errors += [unanswered(text.number, _parse(text).custom_id, code, message) for text in left]
            if len(errors) >= _GROUP:
                await self._thread.do(Store.append, batch.id, errors)
                errors = []
        if errors:
            await self._thread.do(Store.append, batch.id, errors)
        await self._finish(batch, status)

    async def _finish(self, batch: BatchRecord, status: Literal["completed", "cancelled", "expired"]) -> None:
        after = await self._thread.do(Store.advance, batch.id, status)
        logger.info("Batch %s %s: %d of %d lines", batch.id, after.status, after.completed, after.total)

    async def _give_up(self, batch_id: str, error: LineError) -> None:
        try:
            await self._thread.do(Store.advance, batch_id, "failed", errors=[error])
        except StorageError as full:
            logger.warning("Batch %s waits: %s", batch_id, full.message)
            await asyncio.sleep(_LAST_PAUSE_S)

    async def _read(self, batch: BatchRecord, place: Place) -> tuple[list[Text], Place]:
        """The next lines that are not blank, none at the end."""
        path = self._thread.path_of(batch.input_file_id)
        with storage_errors(path):
            while True:
                texts, after = await asyncio.to_thread(read_piece, path, place, self._limits.line_bytes)
                if texts or after == place:
                    return texts, after
                place = after


def _parse(text: Text) -> Line:
    """A line of an input that was found to be right, and has not been touched since."""
    assert text.content is not None
    return parse_line(text.content)
