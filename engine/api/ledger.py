"""Where the time of requests went, as consecutive parts that sum to what was observed; explains, changes nothing.

A ledger is a chain of moments, each later than the one before, so its parts sum by construction. While a request runs
it costs a few additions per step: steps that look alike are one entry.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from sgl.engine.base.ledger import Chunk, Hold, Passage, StepNote, StepTime, StepTimeFit, passage

MAX_RUNS = 128
"""Entries of a ledger; when there are so many, neighbours become one."""

MAX_STEPS = 4096
"""Steps that are remembered, to say what a request waited for."""

_MAX_CAUSES = 8

Part = Literal[
    "parse", "tokenize", "hand over", "grammar", "queue", "preempted", "held", "prefill", "decode", "between steps",
    "deliver", "detokenize", "respond",
]  # fmt: skip
"""What a request goes through: read and checked; its text made tokens; given to the engine, which ends a step first;
its grammar compiled; waiting for room; waiting again after its room was taken; running, but with no share of a step;
steps that computed its prompt, and its answer; the engine's time between those; its last tokens on the way back; made
text; written to the network."""


@dataclass(slots=True)
class Run:
    """Steps one after the other that were alike: what the request computed in them, and with whom.

    Args:
        first: number of the first step.
        others: rows of other requests in each.
        gap_s: between the steps; ``schedule_s``, ``forward_s`` and ``sample_s`` are within them.
        chunk: the largest piece of another request's prompt in any of them.
        chunk_s: how long the steps with such pieces took.
    """

    part: Literal["prefill", "decode"]
    first: int
    begin_s: float
    others: int
    end_s: float = 0.0
    count: int = 0
    num_tokens: int = 0
    other_tokens: int = 0
    gap_s: float = 0.0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    chunk: Chunk | None = None
    chunk_s: float = 0.0

    def add(self, step: StepNote, until_s: float, num_tokens: int, other_tokens: int) -> None:
        """Takes in a step; all before ``until_s`` is accounted for."""
        self.count += 1
        self.num_tokens += num_tokens
        self.other_tokens += other_tokens
        if step.begin_s < until_s:  # it began under the one before, and its parts overlap with that
            self.end_s = max(step.end_s, until_s)
            self.forward_s += self.end_s - until_s
            return
        self.end_s = step.end_s
        self.gap_s += step.begin_s - until_s
        self.schedule_s += step.planned_s - step.begin_s
        self.forward_s += step.forwarded_s - step.planned_s
        self.sample_s += step.end_s - step.forwarded_s

    def extend(self, other: Run) -> None:
        """Takes in the steps that follow."""
        self.end_s = other.end_s
        self.count += other.count
        self.num_tokens += other.num_tokens
        self.other_tokens += other.other_tokens
        self.gap_s += other.gap_s
        self.schedule_s += other.schedule_s
        self.forward_s += other.forward_s
        self.sample_s += other.sample_s
        self.others = max(self.others, other.others)
        self.chunk_s += other.chunk_s
        if self.chunk is None or (other.chunk is not None and other.chunk.num_tokens > self.chunk.num_tokens):
            self.chunk = other.chunk


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that went on while a request waited: a piece of another's prompt, or steps without any.

    Args:
        rid: of the other request, as the engine knows it; empty for answers that went on.
        num_tokens: of its prompt that were computed meanwhile.
        seconds: how long these steps took.
    """

    rid: str
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Time without a share of any step.

    Args:
        causes: the longest ones.
        holds: seconds by what kept requests in the queue.
    """

    part: Part
    begin_s: float
    end_s: float
    causes: tuple[Cause, ...] = ()
    holds: tuple[tuple[Hold, float], ...] = ()


@dataclass(slots=True)
class Ledger:
    """Of one answer.

    Args:
        name: of the answer; ``rid`` is its request's.
        passage: the HTTP request that it came with.
        begun_s: when the engine's API was asked, ``tokenized_s`` when the prompt was tokens, ``sent_s`` when it was on
            its way to the engine.
    """

    name: str
    rid: str
    passage: Passage
    begun_s: float
    tokenized_s: float
    sent_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    finish: str = ""
    entries: list[Run | Wait] = field(default_factory=list)
    num_steps: int = 0
    detokenize_s: float = 0.0  # all of it: but for the last tokens it happens beside the engine's steps
    delivered_s: float = 0.0
    ended_s: float = 0.0
    _unit: int = 1  # steps that an entry has at least, where they follow each other
    _last_step: int = -1
    _until_s: float = 0.0

    def follow(self, step: StepNote, own: Chunk | None, steps: deque[StepNote]) -> None:
        """The request had a share of this step.

        Args:
            own: its row, if that was more than one token of an answer that goes on.
            steps: all that are remembered, this one last.
        """
        if step.step_id == self._last_step:
            return
        last = self.entries[-1] if self.entries else None
        if (
            own is None
            and not step.chunks
            and isinstance(last, Run)
            and last.chunk is None
            and last.part == "decode"
            and last.others == step.num_decodes - 1
            and self._last_step + 1 == step.step_id
        ):
            last.add(step, self._until_s, 1, last.others)
            self._until_s = last.end_s
        else:
            self._begin_run(step, own, steps)
        self._last_step = step.step_id
        self.num_steps += 1

    def _begin_run(self, step: StepNote, own: Chunk | None, steps: deque[StepNote]) -> None:
        if not self._until_s:
            self._enter(step, own, steps)
        elif step.step_id > self._last_step + 1 and step.begin_s > self._until_s:
            was_preempted = own is not None and own.added_s > 0
            self._wait("preempted" if was_preempted else "held", step.begin_s, steps)
        is_prefill = own is not None and (not self.first_token_s or own.added_s > 0)
        run = Run("prefill" if is_prefill else "decode", step.step_id, self._until_s, step.num_rows - 1)
        num_tokens = 1 if own is None else own.num_tokens
        run.add(step, self._until_s, num_tokens, step.num_tokens - num_tokens)
        run.chunk = max((c for c in step.chunks if c is not own), key=lambda c: c.num_tokens, default=None)
        run.chunk_s = run.end_s - run.begin_s if run.chunk is not None else 0.0
        self._append(run)
        self._until_s = run.end_s

    def _append(self, run: Run) -> None:
        """As an entry of its own while there are few; twice as many steps become one whenever there are too many."""
        if len(self.entries) >= MAX_RUNS:
            self.entries = _halved(self.entries)
            self._unit *= 2
        last = self.entries[-1]
        if isinstance(last, Run) and last.part == run.part and last.count < self._unit:
            last.extend(run)
            return
        if len(self.entries) < MAX_RUNS:
            self.entries.append(run)
            return
        # it waits again and again, so that even the halves are many: then waits count as gaps between its steps
        waited_s = 0.0
        while isinstance(wait := self.entries[-1], Wait):
            waited_s += wait.end_s - wait.begin_s
            self.entries.pop()
        run.gap_s += waited_s
        wait.extend(run)

    def _enter(self, step: StepNote, own: Chunk | None, steps: deque[StepNote]) -> None:
        """Up to the first step: the way to the engine, the grammar, the queue."""
        self._until_s = self.sent_s
        if own is None:  # it began before anybody wrote down steps
            return self._wait("queue", step.begin_s, steps)
        self.cached_tokens = own.num_cached
        self._wait("hand over", own.added_s, steps)
        if own.grammar_s:
            self._wait("grammar", own.added_s + own.grammar_s, steps)
        return self._wait("queue", step.begin_s, steps)

    def _wait(self, part: Part, end_s: float, steps: deque[StepNote]) -> None:
        begin_s, end_s = self._until_s, max(end_s, self._until_s)
        if part == "grammar":
            self.entries.append(Wait(part, begin_s, end_s))
        else:
            self.entries.append(Wait(part, begin_s, end_s, *_causes(begin_s, end_s, steps)))
        self._until_s = end_s

    def end_s(self, now_s: float) -> float:
        """When its HTTP request was answered, or now."""
        return max(self.passage.sent_s, self.ended_s) if self.finish else now_s

    def deliver(self, num_tokens: int, begin_s: float, end_s: float) -> None:
        """Tokens arrived and were made text between these moments."""
        self.completion_tokens += num_tokens
        if num_tokens and not self.first_token_s:
            self.first_token_s = begin_s
        self.detokenize_s += end_s - begin_s
        self.delivered_s, self.ended_s = begin_s, end_s

    def parts(self, now_s: float) -> Iterator[tuple[Part, float, float]]:
        """(part, begin, end), one after the other without gaps, up to the end or to now; a run of steps is one part."""
        is_over = bool(self.finish)
        end_s = self.end_s(now_s)
        at_s = self.passage.received_s
        fixed: list[tuple[Part, float]] = [
            ("parse", self.begun_s), ("tokenize", self.tokenized_s), ("hand over", self.sent_s),
        ]  # fmt: skip
        for part, until_s in fixed:
            yield part, at_s, max(until_s, at_s)
            at_s = max(until_s, at_s)
        for entry in tuple(self.entries):
            yield entry.part, at_s, entry.end_s
            at_s = entry.end_s
        last: list[tuple[Part, float]] = [
            ("deliver", self.delivered_s), ("detokenize", self.ended_s), ("respond", end_s),
        ]  # fmt: skip
        if is_over:
            for part, until_s in last:
                yield part, at_s, max(until_s, at_s)
                at_s = max(until_s, at_s)
        elif end_s > at_s:
            yield ("between steps" if self.num_steps else "queue"), at_s, end_s


def _halved(entries: list[Run | Wait]) -> list[Run | Wait]:
    """Runs of the same part that follow each other as one, pair by pair."""
    found: list[Run | Wait] = []
    is_pair = False
    for entry in entries:
        last = found[-1] if found else None
        if isinstance(entry, Run) and isinstance(last, Run) and last.part == entry.part and not is_pair:
            last.extend(entry)
            is_pair = True
        else:
            found.append(entry)
            is_pair = False
    return found


@dataclass(frozen=True, slots=True)
class Times:
    """What the answers of one call have in common: when it came, when it was read, when its prompts were tokens."""

    passage: Passage
    begun_s: float
    tokenized_s: float

    @staticmethod
    def now(begun_s: float) -> Times:
        """Of prompts that are tokens now; what a finished HTTP request has left behind goes its own way."""
        current = passage.get()
        if current is None or current.sent_s:
            current = Passage(begun_s)
        return Times(current, begun_s, time.monotonic())

    def ledger(self, name: str, rid: str, prompt_tokens: int) -> Ledger:
        """Of an answer that goes to the engine now."""
        return Ledger(name, rid, self.passage, self.begun_s, self.tokenized_s, time.monotonic(), prompt_tokens)


def _causes(
    begin_s: float, end_s: float, steps: deque[StepNote]
) -> tuple[tuple[Cause, ...], tuple[tuple[Hold, float], ...]]:
    """What the engine did between two moments, and what kept requests in its queue."""
    seconds: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    holds: dict[Hold, float] = defaultdict(float)
    for step in reversed(steps):
        if step.end_s <= begin_s:
            break
        shared_s = min(step.end_s, end_s) - max(step.begin_s, begin_s)
        if shared_s <= 0:
            continue
        largest = max(step.chunks, key=lambda chunk: chunk.num_tokens, default=Chunk("", 0))
        seconds[largest.rid] += shared_s
        tokens[largest.rid] += largest.num_tokens
        holds[Hold(step.hold)] += shared_s
    longest = sorted(seconds, key=lambda rid: -seconds[rid])[:_MAX_CAUSES]
    reasons = sorted((hold for hold in holds if hold is not Hold.NOTHING), key=lambda hold: -holds[hold])
    return (
        tuple(Cause(rid, tokens[rid], seconds[rid]) for rid in longest),
        tuple((hold, holds[hold]) for hold in reasons),
    )


class Book:
    """The ledgers of the requests that run, and of the last ones that did.

    Args:
        capacity: finished ones that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._running: dict[str, Ledger] = {}  # by the engine's name of an answer
        self._finished: deque[Ledger] = deque(maxlen=capacity)
        self._steps: deque[StepNote] = deque(maxlen=MAX_STEPS)
        self._fit = StepTimeFit()

    @property
    def is_on(self) -> bool:
        return self._capacity > 0

    @property
    def step_time(self) -> StepTime:
        """How long steps have taken lately."""
        return self._fit.value()

    @property
    def num_steps(self) -> int:
        """All that `step_time` was learned from."""
        return self._fit.num_seen

    def open(self, wire_rid: str, ledger: Ledger) -> None:
        """An answer begins.

        Args:
            wire_rid: what the engine calls it.
        """
        if self.is_on:
            self._running[wire_rid] = ledger

    def follow(self, step: StepNote, rids: Iterable[str]) -> None:
        """The engine has done a step.

        Args:
            rids: of the answers that it brought tokens of.
        """
        self._learn(step)
        running, steps = self._running, self._steps
        for chunk in step.chunks:
            if chunk.rid in running:
                running[chunk.rid].follow(step, chunk, steps)
        for rid in rids:
            if rid in running:
                running[rid].follow(step, None, steps)

    def _learn(self, step: StepNote) -> None:
        before_s = self._steps[-1].end_s if self._steps else step.begin_s
        self._steps.append(step)
        self._fit.add(step.num_tokens, step.end_s - max(step.begin_s, before_s))

    def close(self, wire_rid: str, finish: str) -> None:
        """An answer is over; it may be said more than once."""
        ledger = self._running.pop(wire_rid, None)
        if ledger is not None:
            ledger.finish = finish
            if finish == "abort" or not ledger.ended_s:
                ledger.delivered_s = ledger.ended_s = time.monotonic()
            self._finished.append(ledger)

    def find(self, rid: str) -> list[Ledger]:
        """All answers of the latest request of that name, or of what the client knows by it: ``rid-0``, ``rid-1``..."""
        newest = self.everything()[::-1]
        for wanted in (lambda one: rid in (one.rid, one.name), lambda one: one.rid.rpartition("-")[0] == rid):
            found = [one for one in newest if wanted(one)]
            if found:
                same = [one for one in found if one.passage is found[0].passage]
                return same[::-1]
        return []

    def everything(self) -> list[Ledger]:
        """Finished ones, then those that run."""
        return [*self._finished, *self._running.values()]
