"""Plays a scheduler that does everything at random: batches, chunks, pages, slots, drafts, preemption and overlap."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sgl.engine.base.types import (
    Executor,
    KnownMasks,
    PageRun,
    Row,
    RowInit,
    RowOutput,
    StepPlan,
    StepResult,
    TokenLogprob,
)
from sgl.engine.runtime.batch import Draws
from sgl.engine.runtime.slots import SlotTable


@dataclass
class Job:
    """One request and what came of it. ``known`` and ``computed`` are upper bounds while steps are in flight."""

    init: RowInit
    max_new: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    hidden: list[bytes] = field(default_factory=list)
    error: str | None = None
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    known: int = 0
    computed: int = 0
    inflight: int = 0
    fresh: bool = True
    may_draft: bool = False

    @property
    def outputs(self) -> list[int]:
        return self.tokens[self.init.num_prompt :]

    @property
    def done(self) -> bool:
        return self.error is not None or len(self.outputs) >= self.max_new


class Driver:
    """Runs jobs to their end.

    Args:
        overlap: how many steps may be in flight when the next is planned.
        max_chunk: most prompt tokens of a row in one step.
        preemption: probability that a step takes a job's slot and pages away.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        seed: int = 0,
        num_slots: int = 4,
        num_pages: int = 64,
        page_size: int = 4,
        overlap: int = 0,
        max_chunk: int = 1000,
        max_draft: int = 0,
        preemption: float = 0.0,
    ) -> None:
        self.executor = executor
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.overlap = overlap
        self.max_chunk = max_chunk
        self.max_draft = max_draft
        self.preemption = preemption
        self.free_slots = list(range(num_slots))
        self.free_pages = list(range(num_pages))
        self.given_up: list[int] = []
        self.num_steps = 0

    def run(self, inits: Sequence[RowInit], max_new: int) -> list[Job]:
        jobs = [Job(init, max_new, list(init.token_ids)) for init in inits]
        pending: deque[tuple[StepPlan, list[Job], StepResult]] = deque()
        while pending or not all(job.done for job in jobs):
            planned = self._plan(jobs)
            rows = [self._row(job) for job in planned]
            plan = StepPlan(self.num_steps, tuple(rows), tuple(self.given_up))
            if rows:
                self.num_steps += 1
                self.given_up = []
                self.executor.forward(plan)
            while len(pending) > (self.overlap - 1 if rows else 0) and pending:
                self._collect(*pending.popleft())
            if rows:
                pending.append((plan, planned, self.executor.sample(plan, KnownMasks())))
                while len(pending) > self.overlap:
                    self._collect(*pending.popleft())
        return jobs

    def _plan(self, jobs: list[Job]) -> list[Job]:
        rng = self.rng
        for job in jobs:
            if job.slot is not None and not job.inflight and (job.done or rng.random() < self.preemption):
                self._release(job)
        able = [
            job
            for job in jobs
            if not job.done and (job.slot is None or job.known < len(job.init.token_ids) + job.max_new)
        ]
        able = [job for job in able if job.slot is not None or not job.inflight]
        rng.shuffle(able)
        chosen = []
        for job in able[: rng.randint(1, max(len(able), 1))]:
            if job.slot is None:
                if not self.free_slots:
                    continue
                job.slot = self.free_slots.pop(rng.randrange(len(self.free_slots)))
                job.known, job.computed, job.fresh, job.may_draft = len(job.tokens), 0, True, False
            chosen.append(job)
        return chosen

    def _row(self, job: Job) -> Row:
        rng = self.rng
        left = job.known - job.computed
        num_tokens = min(left, rng.randint(1, self.max_chunk)) if left > 1 else 1
        num_draft = rng.randint(0, self.max_draft) if left == 1 and job.may_draft else 0
        end = job.computed + num_tokens
        samples = end == job.known
        missing = -(-(end + num_draft) // self.page_size) - len(job.pages)
        fresh = [self.free_pages.pop(rng.randrange(len(self.free_pages))) for _ in range(missing)]
        init = None
        if job.fresh:
            wants = job.init.wants
            start = wants.logprob_start
            if start is not None:
                start = start + len(job.prompt_logprobs)
                start = start if start < job.init.num_prompt else None
            import msgspec

            init = msgspec.structs.replace(
                job.init,
                token_ids=tuple(job.tokens),
                wants=msgspec.structs.replace(wants, logprob_start=start),
                hidden_start=len(job.hidden),
            )
        assert job.slot is not None
        row = Row(
            rid=str(id(job)),
            slot=job.slot,
            num_tokens=num_tokens + num_draft,
            num_draft=num_draft,
            kind="token" if samples else "none",
            init=init,
            computed=job.computed if job.fresh else None,
            new_pages=PageRun(len(job.pages), tuple(fresh)) if fresh else None,
        )
        job.pages += fresh
        job.fresh = False
        job.inflight += 1
        job.computed = end + num_draft
        if samples:
            job.known = job.computed + 1
            job.may_draft = True
        return row

    def _collect(self, plan: StepPlan, jobs: list[Job], result: StepResult) -> None:
        for row, job, output in zip(plan.rows, jobs, result.wait(), strict=True):
            job.inflight -= 1
            if not job.done:
                self._take_in(row, job, output)

    def _take_in(self, row: Row, job: Job, output: RowOutput) -> None:
        job.error = output.error
        room = job.max_new - len(job.outputs)
        assert len(output.token_ids) == (0 if row.kind == "none" else max(len(output.token_ids), 1))
        assert len(output.logprobs) == (len(output.token_ids) if job.init.wants.logprobs else 0)
        job.tokens += output.token_ids[:room]
        job.logprobs += output.logprobs[:room]
        job.prompt_logprobs += output.prompt_logprobs
        job.hidden += output.hidden[: len(output.hidden) - max(len(output.token_ids) - room, 0)]
        if row.kind == "token":
            slack = 1 + row.num_draft - len(output.token_ids)
            job.known -= slack
            job.computed -= slack

    def _release(self, job: Job) -> None:
        assert job.slot is not None
        self.free_slots.append(job.slot)
        self.given_up.append(job.slot)
        self.free_pages += job.pages
        job.slot, job.pages = None, []


class OracleDrafter:
    """Proposes the true continuation, wrong in a random place now and then."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], num_draft: int, hit_rate: float) -> None:
        self.num_draft = num_draft
        self.answers = answers  # prompt -> prompt and outputs
        self.hit_rate = hit_rate
        self.rng = random.Random(0)

    def propose(self, table: SlotTable, draws: Draws) -> None:
        for slot in set(draws.slot_ids):
            init = table.inits[slot]
            answer = self.answers[init.token_ids[: init.num_prompt]]
            known = int(table.computed[slot]) + 1
            drafts = (answer[known : known + self.num_draft] + [0] * self.num_draft)[: self.num_draft]
            drafts = [draft if self.rng.random() < self.hit_rate else draft ^ 1 for draft in drafts]
            table.tokens[slot, known : known + self.num_draft] = torch.tensor(drafts, dtype=torch.int32)
