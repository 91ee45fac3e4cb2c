"""Asks a model all items of a task, many at once, and sums up what came back; knows no task and prints nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sgl.bench.evals.asks import Ask, Json, Model, Reply, Scores
from sgl.bench.evals.estimates import share
from sgl.bench.evals.items import Item, Record, Task, record_of
from sgl.bench.evals.journal import Journal
from sgl.engine.base.errors import SglError

PARALLEL = 64
ATTEMPTS = 4
"""How often an item is asked where what failed may pass."""

HOPELESS = 8
"""With so many failures and not one answer a run ends: something is wrong with all of it."""

_BACKOFF_S = 0.5


def _ignore(_: Record) -> None:
    pass


@dataclass
class Run:
    """What is known so far.

    Args:
        answered: by key of the item.
        failed: the items that got no answer. They are no wrong answers.
        num_resumed: answers that an earlier run had.
        duration_s: of this run.
    """

    task: Task
    items: Sequence[Item]
    answered: dict[str, Record] = field(default_factory=dict)
    failed: list[Record] = field(default_factory=list)
    num_resumed: int = 0
    duration_s: float = 0.0
    interrupted: bool = False

    @property
    def records(self) -> list[Record]:
        """The answers, in the order of the items."""
        return [self.answered[item.key] for item in self.items if item.key in self.answered]

    @property
    def data_hash(self) -> str:
        """Names the items: equal hashes are equal questions with equal right answers, in order."""
        keys = "".join(item.key for item in self.items)
        return hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()

    def summary(self) -> Json:
        """Figures by name. ``accuracy`` is of what was answered; the interval is Wilson's, of 95%.

        Raises:
            SglError: nothing was answered.
        """
        records = self.records
        if not records:
            reason = f": {self.failed[0].error}" if self.failed else "."
            raise SglError(f"No question of {self.task.name} was answered{reason}")
        tokens = sum(record.completion_tokens for record in records)
        return {
            **_accuracy(records),
            "num_items": len(self.items),
            "num_answered": len(records),
            "num_failed": len(self.failed),
            "first_error": self.failed[0].error if self.failed else "",
            "num_cut": sum(record.finish == "length" for record in records),
            "prompt_tokens": sum(record.prompt_tokens for record in records),
            "completion_tokens": tokens,
            "num_resumed": self.num_resumed,
            "latency": self.duration_s,
            "interrupted": self.interrupted,
            **_groups(records),
            **self.task.figures(records),
        }


def _accuracy(records: Sequence[Record]) -> Json:
    judged = [record.is_right for record in records if record.is_right is not None]
    if not judged:
        return {}
    found = share(sum(judged), len(judged))
    return {"accuracy": found.value, "low": found.low, "high": found.high, "num_right": sum(judged)}


def _groups(records: Sequence[Record]) -> Json:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    if len(groups) < 2 and "" in groups:
        return {}
    return {
        "groups": {
            name: {
                **_accuracy(found),
                "num_answered": len(found),
                "num_cut": sum(record.finish == "length" for record in found),
            }
            for name, found in groups.items()
        }
    }


def evaluate(
    task: Task,
    model: Model,
    *,
    parallel: int = PARALLEL,
    journal: Journal | None = None,
    on_record: Callable[[Record], None] = _ignore,
    run: Run | None = None,
) -> Run:
    """Asks all items that the journal has no answers to. Ctrl-C ends the run; what was answered stays.

    Args:
        run: what `prepare` gave, if it was called before.

    Raises:
        ConfigError: the task's data cannot be read, or the model lacks what it needs.
        SglError: nothing but failures.
    """
    run = run or prepare(task, model, journal)
    begin_s = time.monotonic()
    try:
        model.run(_answer_all(run, model, parallel, journal, on_record))
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        run.duration_s = time.monotonic() - begin_s
    return run


def prepare(task: Task, model: Model, journal: Journal | None = None) -> Run:
    """A run with the answers that are there already.

    Raises:
        ConfigError: the task's data cannot be read, or the model lacks what it needs.
    """
    run = Run(task, task.items(model))
    known = journal.answered if journal is not None else {}
    run.answered = {item.key: known[item.key] for item in run.items if item.key in known}
    run.num_resumed = len(run.answered)
    return run


async def _answer_all(
    run: Run, model: Model, parallel: int, journal: Journal | None, on_record: Callable[[Record], None]
) -> None:
    open_items = [item for item in run.items if item.key not in run.answered]
    rest = iter(open_items)

    async def work(rest: Iterator[Item]) -> None:
        for item in rest:
            record = await _answer(run.task, model, item)
            if record.error:
                run.failed.append(record)
            else:
                run.answered[record.key] = record
            if journal is not None:
                journal.add(record)
            on_record(record)
            if len(run.failed) >= HOPELESS and not run.answered:
                raise SglError(f"The first {len(run.failed)} questions failed: {record.error}")

    workers = [asyncio.create_task(work(rest)) for _ in range(min(max(parallel, 1), len(open_items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(task: Task, model: Model, item: Item) -> Record:
    """Asks until there is an answer, or an error that will not pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found = await _found(model, item)
        except SglError as error:
            if not error.retryable or attempt == ATTEMPTS:
                return Record(item.key, item.id, item.group, expected=item.expected, error=error.message)
            await asyncio.sleep(_BACKOFF_S * 2 ** (attempt - 1))
        else:
            return record_of(item, found, task.judge(item, found))
    raise AssertionError("the last attempt returns")


async def _found(model: Model, item: Item) -> Reply | Scores:
    return await model.answer(item.ask) if isinstance(item.ask, Ask) else await model.score(item.ask)
