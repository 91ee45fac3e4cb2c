"""Decides what each step computes: host integers only, no torch, no clock of its own, no I/O.

There is no prefill phase and no decode phase: every running request has known and computed tokens, and a step moves
computed towards known within a token budget (docs/design.md, section 3). Prefixes are published to the cache when
their computation is *scheduled*: plans run in order, and within a layer every row's KV is stored before any row
attends, so even two requests admitted into the same step share their common prefix.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from sgl.engine.base.errors import SglError
from sgl.engine.base.ledger import Hold
from sgl.engine.base.types import FinishReason, Output, Request, Row, RowOutput, StepPlan
from sgl.engine.core.cache import PageCache
from sgl.engine.core.expectation import ExpectedShare
from sgl.engine.core.grammar import FORCED, GrammarCompiler, StepMasks
from sgl.engine.core.holdings import Holdings
from sgl.engine.core.limits import StepLimits
from sgl.engine.core.policy import make_policy
from sgl.engine.core.request import RequestState, refusal

logger = logging.getLogger(__name__)

OVERDUE_ADMISSIONS = 64
"""A request that so many later ones have overtaken (plus four per place in its queue) is admitted next."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The scheduler's slice of the configuration; sizes in tokens unless named otherwise."""

    num_pages: int
    page_size: int
    max_running: int
    max_step_tokens: int
    max_queued: int
    max_len: int
    split_prompts: bool = True
    policy: str = "lpm"
    conservativeness: float = 1.0
    max_draft: int = 0
    prefix_caching: bool = True
    seed: int = 0
    jump_forward: bool = True


class Scheduler:
    """Owns requests from `add` to their last `Output`. Call `schedule`, execute the plan, then `update`, in order.

    A request is queued (`_enqueue`), gets a slot and what the cache has of its prompt (`_admit`), then its share of
    every step (`_plan_running`). What it computes is booked when it is planned (`_plan_row`); what came of it is taken
    in when the results are there (`_take_in`), until it ends (`_end`).
    """

    def __init__(self, config: SchedulerConfig, grammars: GrammarCompiler) -> None:
        self._grammars = grammars
        self._states: dict[str, RequestState] = {}
        self._compiling: list[RequestState] = []
        self._waiting: list[RequestState] = []  # sorted by arrival_key
        self._running: list[RequestState] = []  # sorted by arrival_key: the last one is preempted first
        self._inflight: deque[tuple[StepPlan, list[RequestState]]] = deque()
        self._holdings = Holdings(config.max_running)
        self._sequence = 0
        self._admitted = 0
        self._step_id = 0
        self._now_s = 0.0
        self._is_paused = False
        self._shut: FinishReason | None = None
        self.hold = Hold.NOTHING
        self.num_preempted = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.configure(config)

    def configure(self, config: SchedulerConfig) -> None:
        """Goes on with other settings and an empty prefix cache; only while no request is known."""
        assert not self.has_work
        self.config = config
        self._holdings.reset(config.num_pages, config.page_size, prefix_caching=config.prefix_caching)
        self._order = make_policy(config.policy, config.seed)
        self._share_used = ExpectedShare(config.conservativeness)
        least = config.page_size if config.split_prompts else config.max_step_tokens
        self._limits = StepLimits(config.max_step_tokens, config.max_running, least)

    # ---- requests in and out ----------------------------------------------------------------------------------------

    @property
    def cache(self) -> PageCache:
        return self._holdings.cache

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._compiling)

    @property
    def num_steps(self) -> int:
        """Planned so far."""
        return self._step_id

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._inflight or self._compiling)

    @property
    def only_compiles(self) -> bool:
        """Whether nothing can be planned before a grammar is there."""
        return bool(self._compiling) and not (self._waiting or self._running or self._inflight)

    @property
    def num_used_pages(self) -> int:
        """Pages that somebody needs now; cached ones that nobody uses do not count."""
        return self.config.num_pages - self.cache.num_available

    def state_of(self, rid: str) -> RequestState:
        """Of a request that is known, for those who record steps."""
        return self._states[rid]

    def add(self, request: Request, now_s: float) -> list[Output]:
        """Queues a request; one that cannot be taken is answered at once."""
        reason = self._refusal(request)
        if reason is not None:
            return [Output(rid=request.rid, finish=reason, prompt_tokens=len(request.token_ids))]
        self._sequence += 1
        state = self._states[request.rid] = RequestState(request, self._sequence, now_s)
        if request.params.grammar is None:
            self._enqueue(state)
            return []
        state.status = "compiling"
        state.ticket = self._grammars.compile(request.params.grammar, state.stop_ids)
        self._compiling.append(state)
        return self.poll_grammars(now_s)

    def _refusal(self, request: Request) -> FinishReason | None:
        assert request.token_ids and request.rid not in self._states
        if self._shut is not None:
            return self._shut
        if self.num_waiting >= self.config.max_queued:
            message = f"The queue is full ({self.config.max_queued} requests are waiting); try again later."
            return FinishReason(kind="abort", message=message, status=503, code="server_overloaded")
        total = len(request.token_ids) + request.params.max_new_tokens
        limit = min(self.config.max_len, self.config.num_pages * self.config.page_size)
        if total > limit:
            message = f"The prompt and max_new_tokens ask for {total} tokens; at most {limit} fit."
            return FinishReason(kind="abort", message=message, status=400, code="context_length_exceeded")
        return None

    def poll_grammars(self, now_s: float) -> list[Output]:
        """Queues the requests whose grammar is there, and ends those whose grammar cannot be compiled."""
        outputs = []
        for state in list(self._compiling):
            assert state.ticket is not None
            try:
                state.grammar = state.ticket.poll()
            except SglError as error:
                outputs.append(self._end(state, refusal(error)))
                continue
            if state.grammar is not None:
                self._compiling.remove(state)
                state.grammar_time_s = now_s - state.queued_at_s
                state.queued_at_s = now_s
                self._enqueue(state)
        return outputs

    def _enqueue(self, state: RequestState) -> None:
        state.status = "waiting"
        state.ticket = None
        state.overdue_at = self._admitted + OVERDUE_ADMISSIONS + 4 * len(self._waiting)
        bisect.insort(self._waiting, state, key=lambda other: other.arrival_key)

    def abort(self, rid: str, reason: FinishReason) -> list[Output]:
        """Ends the request in whatever state it is; an unknown name is ignored."""
        return [self._end(self._states[rid], reason)] if rid in self._states else []

    def abort_all(self, reason: FinishReason) -> list[Output]:
        return [self._end(state, reason) for state in list(self._states.values())]

    def flush_cache(self) -> bool:
        """Drops all cached prefixes; refused while any request is known."""
        if self.has_work:
            return False
        self.forget_prefixes()
        return True

    # ---- while the weights change -----------------------------------------------------------------------------------

    @property
    def is_runnable(self) -> bool:
        """Whether a step may have something to do, now that only some requests may run."""
        return bool(self._running or self._inflight or (self._waiting and not self._is_paused))

    @property
    def is_settled(self) -> bool:
        """Whether nothing that has been computed will be used for any request that is left."""
        return not (self._running or self._inflight or any(state.has_begun for state in self._waiting))

    def pause(self) -> None:
        """Lets only requests run that have begun to answer; others go back to the queue and wait for `resume`."""
        self._is_paused = True
        for state in [state for state in self._running if not state.has_begun]:
            self._requeue(state)

    def resume(self) -> None:
        self._is_paused = False

    def expel(self, reason: FinishReason) -> list[Output]:
        """Ends the requests that have begun to answer."""
        return [self._end(state, reason) for state in list(self._states.values()) if state.has_begun]

    def shut(self, reason: FinishReason | None) -> None:
        """Refuses all new requests; None takes them again."""
        self._shut = reason

    def forget_prefixes(self) -> None:
        """Empties the prefix cache, of which no request may use anything."""
        self.cache.flush()

    # ---- planning ---------------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> StepPlan:
        """The next step. A plan without rows means: nothing can run before an older result is in or a request comes."""
        rows: list[Row] = []
        states: list[RequestState] = []
        self._now_s = now_s
        self._preempt_for_priority()
        num_preempted = self.num_preempted
        budget = self._plan_running(rows, states)
        if self._waiting and budget > 0 and self._holdings.has_free_slot and self.num_preempted == num_preempted:
            budget = self._admit(rows, states, budget, now_s)
        self.hold = self._hold(budget) if self._waiting else Hold.NOTHING
        self._share_used.decay()
        plan = StepPlan(self._step_id, tuple(rows), tuple(self._holdings.freed_slots))
        if rows:
            self._limits.note()
            self._step_id += 1
            self._holdings.freed_slots = []
            self._inflight.append((plan, states))
        return plan

    def _plan_running(self, rows: list[Row], states: list[RequestState]) -> int:
        """Gives every running request its share; returns the budget left over for new ones.

        Decodes are cheap and somebody watches them, so room for all of them is set aside before any prompt chunk.
        """
        budget = self._limits.tokens
        if self.config.split_prompts:
            decodes = sum([state.known - state.computed == 1 for state in self._running])
            budget = max(budget - decodes * (1 + self.config.max_draft), min(self.config.page_size, budget))
        for state in self._running:  # which preemption shortens at its end
            if state.computed < state.decode_end:  # a step like the one before
                state.inflight += 1
                state.computed += 1
                state.known += 1
                rows.append(state.decode_row)
                states.append(state)
                continue
            num_tokens, num_draft = self._share(state, budget)
            if num_tokens == 0:
                continue
            if not self._make_room(state, num_tokens + num_draft):
                break
            if state.known - state.computed > 1:
                budget -= num_tokens
            rows.append(self._plan_row(state, num_tokens, num_draft))
            states.append(state)
        return budget

    def _share(self, state: RequestState, budget: int) -> tuple[int, int]:
        """Tokens and drafts that a running request computes in this step."""
        params = state.request.params
        if state.known - state.computed > 1:
            self._holdings.adopt(state)
        remaining = state.known - state.computed
        if remaining == 0 or (state.known >= state.max_tokens and params.max_new_tokens > 0):
            return 0, 0
        if remaining > 1:
            return self._chunk(remaining, budget), 0
        if state.grammar is not None or not state.has_draft:
            return 1, 0
        return 1, max(0, min(self.config.max_draft, state.max_tokens - state.known - 1))

    def _chunk(self, remaining: int, budget: int) -> int:
        """Share of a prompt that fits the budget, cut at a page border where that is possible."""
        size = min(remaining, max(budget, 0))
        if size < remaining and not self.config.split_prompts:
            return 0
        page = self.config.page_size
        return size if size == remaining or size < page else size // page * page

    def _hold(self, budget: int) -> Hold:
        """What keeps the others waiting, after a step was planned that has ``budget`` left."""
        if self._is_paused:
            return Hold.PAUSE
        if not self._holdings.has_free_slot:
            return Hold.SLOTS
        return Hold.BUDGET if budget <= 0 else Hold.MEMORY

    def _admit(self, rows: list[Row], states: list[RequestState], budget: int, now_s: float) -> int:
        """Moves waiting requests into free slots in policy order, until one does not fit; returns the budget left."""
        reserved = sum(self._future_pages(state) for state in self._running)
        order = self._order(self._waiting, self.cache)
        oldest = self._waiting[0]
        if self._admitted >= oldest.overdue_at:
            order = [oldest] + [state for state in order if state is not oldest]
        if self._is_paused:
            order = [state for state in order if state.has_begun]
        admitted: list[RequestState] = []
        for state in order:
            if budget <= 0 or not self._holdings.has_free_slot or len(self._running) >= self._limits.rows:
                break
            if state.inflight:
                continue  # preempted; its last tokens are still on their way
            num_tokens = self._try_start(state, budget, reserved, alone=not self._running)
            if num_tokens == 0:
                break
            reserved += self._future_pages(state)
            budget -= num_tokens
            state.queue_time_s += now_s - state.queued_at_s
            admitted.append(state)
            bisect.insort(self._running, state, key=lambda other: other.arrival_key)
            rows.append(self._plan_row(state, num_tokens, 0))
            states.append(state)
        if admitted:
            self._admitted += len(admitted)
            self._waiting = [state for state in self._waiting if state.status == "waiting"]
        return budget

    def _try_start(self, state: RequestState, budget: int, reserved: int, *, alone: bool) -> int:
        """Gives a waiting request its prefix, slot and first pages; returns the size of its first chunk, 0 if none."""
        self._holdings.share(state)
        state.known = len(state.tokens)
        num_tokens = self._chunk(state.known - state.computed, budget)
        fits = num_tokens > 0 and (alone or self._future_pages(state) + reserved <= self.cache.num_available)
        if not fits or not self._holdings.extend(state, num_tokens):
            self._holdings.unshare(state)
            return 0
        state.slot = self._holdings.take_slot()
        state.status = "running"
        state.first_time = state.computed_dirty = True
        state.has_draft = False
        state.decode_end = 0
        state.settled_from = -1
        state.pages_sent = 0
        if state.num_preempted == 0:
            state.cached_tokens = state.computed
            self.num_prompt_tokens += state.num_prompt
            self.num_cached_tokens += state.computed
        return num_tokens

    def _plan_row(self, state: RequestState, num_tokens: int, num_draft: int) -> Row:
        """Books the computation of ``num_tokens`` (+ drafts) and describes it to the device."""
        end = state.computed + num_tokens
        samples = end == state.known and state.request.params.max_new_tokens > 0
        pools = end == state.known and state.request.pooling is not None
        row = Row(
            rid=state.request.rid,
            slot=state.slot,
            num_tokens=num_tokens + num_draft,
            num_draft=num_draft,
            kind="token" if samples else "pool" if pools else "none",
            init=state.row_init() if state.first_time else None,
            computed=state.computed if state.computed_dirty else None,
            new_pages=state.unsent_pages(),
            new_tokens=state.unsent_tokens(),
        )
        prefill = num_tokens > 1 or state.first_time
        state.first_time = state.computed_dirty = False
        state.inflight += 1
        state.computed = end + num_draft
        if samples:
            state.known = state.computed + 1
            state.has_draft = True
            self._expect_decodes(state)
        if prefill:
            self._holdings.publish(state, end, replace=False)
        return row

    def _expect_decodes(self, state: RequestState) -> None:
        """Prepares the row of the next steps, which stays the same until a page is full or the request ends."""
        if self.config.max_draft:
            return  # the host does not know how far such a step gets
        room = len(state.pages) * self.config.page_size
        state.decode_end = min(room, state.max_tokens - 1)
        if state.decode_row.slot != state.slot:
            state.decode_row = Row(rid=state.request.rid, slot=state.slot, num_tokens=1, kind="token")

    # ---- pages ------------------------------------------------------------------------------------------------------

    def _future_pages(self, state: RequestState) -> int:
        """Pages that a request is expected to need on top of those it has."""
        left = max(state.max_tokens - len(state.tokens), 0)
        expected = len(state.tokens) + int(self._share_used.value * left)
        return max(-(-expected // self.config.page_size) - len(state.pages), 0)

    def _make_room(self, state: RequestState, num_tokens: int) -> bool:
        """Gets the pages for ``num_tokens`` more, preempting from the end of the line; False if that hit ``state``."""
        while not self._holdings.extend(state, num_tokens):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is state:
                return False
        return True

    def _requeue(self, state: RequestState, *, keep: bool = True) -> None:
        """Puts a running request back into the queue; it will be recomputed, from the cache where that survives."""
        self._running.remove(state)
        self._holdings.surrender(state, keep=keep)
        state.status = "waiting"
        state.queued_at_s = self._now_s
        state.num_preempted += 1
        state.overdue_at = self._admitted
        bisect.insort(self._waiting, state, key=lambda other: other.arrival_key)

    def _preempt(self, state: RequestState) -> None:
        """Puts a request back for want of memory, and expects the others to need more of it than before."""
        self._requeue(state)
        self.num_preempted += 1
        before = self._share_used.value
        self._share_used.learn(self._running)
        after = self._share_used.value
        logger.info(
            "decode out of memory happened, #retracted_reqs: %d, #new_token_ratio: %.4f -> %.4f", 1, before, after
        )

    def _preempt_for_priority(self) -> None:
        """Makes room for the first in the queue at the expense of running requests of lower priority."""
        while self._waiting and self._running and not self._is_paused:
            first, last = self._waiting[0], self._running[-1]
            if first.request.priority <= last.request.priority or first.inflight:
                return
            reserved = sum(self._future_pages(state) for state in self._running)
            cached = self.cache.match_length(first.namespace, first.key)
            if (
                self._holdings.has_free_slot
                and self._future_pages(first) - cached + reserved <= self.cache.num_available
            ):
                return
            self._preempt(last)

    # ---- results ----------------------------------------------------------------------------------------------------

    def update(self, results: list[RowOutput]) -> list[Output]:
        """Takes in the results of the oldest plan in flight."""
        plan, states = self._inflight.popleft()
        outputs: list[Output] = []
        for row, state, result in zip(plan.rows, states, results, strict=True):
            state.inflight -= 1
            if state.status != "finished":
                output = self._take_in(row, state, result)
                if output is not None:
                    outputs.append(output)
            elif state.inflight == 0 and state.node is not None:
                self._holdings.surrender(state, keep=state.finish is not None and state.finish.status < 500)
        return outputs

    def _take_in(self, row: Row, state: RequestState, result: RowOutput) -> Output | None:
        """What a row tells of its request; None if that is nothing new."""
        if state.failure is not None:
            return self._end(state, state.failure)
        is_deferred, state.is_deferred = state.is_deferred, False
        if is_deferred:
            result = RowOutput(prompt_logprobs=result.prompt_logprobs, hidden=result.hidden[:-1])
        if result.error is not None:
            return self._end(state, FinishReason(kind="abort", message=result.error, status=500, code="model_error"))
        if row.kind == "token" and state.num_void:
            state.num_void -= 1
            return None
        tokens, finish = self._accept(state, result.token_ids)
        if row.kind == "token" and state.status == "running":
            rejected = 1 + row.num_draft - len(result.token_ids)
            if is_deferred:
                state.sample_again()
            elif rejected:
                state.computed -= rejected
                state.known -= rejected
        elif state.request.params.max_new_tokens == 0 and state.computed == state.known and state.inflight == 0:
            finish = FinishReason(kind="length")
        hidden = result.hidden[: len(result.hidden) - (len(result.token_ids) - len(tokens))]
        if finish is None and not (tokens or hidden or result.prompt_logprobs):
            return None
        output = Output(rid=state.request.rid, token_ids=tokens, pooled=result.pooled)
        if result.logprobs:
            output.logprobs = result.logprobs[: len(tokens)]
        if result.prompt_logprobs:
            output.prompt_logprobs = result.prompt_logprobs
            state.prompt_logprobs_sent += len(result.prompt_logprobs)
        if hidden:
            output.hidden = hidden
            state.hidden_sent += len(hidden)
        if finish is not None:
            return self._end(state, finish, output)
        if state.num_output == len(tokens):
            state.describe(output)
        return output

    def _accept(self, state: RequestState, token_ids: list[int]) -> tuple[list[int], FinishReason | None]:
        """Appends what was sampled, up to a token that ends the request, and then what the grammar forces."""
        for count, token_id in enumerate(token_ids, start=1):
            finish = state.accept(token_id)
            if finish is not None:
                return token_ids[:count], finish
        if token_ids and state.standing == FORCED and self.config.jump_forward:
            forced, finish = state.jump(len(self._running))
            return [*token_ids, *forced], finish
        return token_ids, None

    def _end(self, state: RequestState, finish: FinishReason, output: Output | None = None) -> Output:
        """Finishes a request; its pages and slot go when no step in flight uses them any more."""
        if output is None:
            output = Output(rid=state.request.rid)
        output.finish = state.finish = finish
        state.describe(output)
        del self._states[state.request.rid]
        lists = {"compiling": self._compiling, "waiting": self._waiting, "running": self._running}
        lists[state.status].remove(state)
        state.status = "finished"
        if state.inflight == 0 and state.node is not None:
            self._holdings.surrender(state, keep=finish.status < 500)
        return output

    def masks(self, is_recorded: bool = False) -> StepMasks:
        """Grammar masks of the newest plan; call it once the results of all older plans are in."""
        plan, states = self._inflight[-1]
        constrained = {
            index: state.grammar
            for index, (row, state) in enumerate(zip(plan.rows, states, strict=True))
            if state.grammar is not None and row.kind == "token" and state.status == "running" and not state.num_void
        }

        def fail(row: int, error: SglError | None) -> None:
            states[row].is_deferred = error is None
            states[row].failure = None if error is None else refusal(error)

        return StepMasks(constrained, self._grammars, fail, is_recorded)

    # ---- steps that failed ------------------------------------------------------------------------------------------

    def fail(self, message: str) -> list[Output]:
        """A step broke: ends every running request and forgets all cached KV, since none of it can be trusted.

        With them end preempted ones whose grammars are ahead by a token that nobody will ever hear of.
        """
        finish = FinishReason(kind="abort", message=message, status=500, code="internal_error")
        stranded = {id(state): state for _, states in self._inflight for state in states}
        self._inflight.clear()
        lost = list(self._running)
        for state in stranded.values():
            state.inflight, state.num_void, state.is_deferred = 0, 0, False
            if state.status == "finished" and state.node is not None:
                self._holdings.surrender(state, keep=False)
            elif state.status == "waiting" and state.grammar is not None and state.grammar.is_ahead:
                lost.append(state)
        outputs = [self._end(state, finish) for state in lost]
        self.cache.flush()
        return outputs

    def retract(self, message: str, advanced: Collection[int] = ()) -> list[Output]:
        """Memory did not suffice for the newest plan, and all older results are in: does as if it had never been made.

        Whatever runs goes back to the queue, and less of it comes again at once, so the youngest wait. With ``message``
        end a request that did not fit by itself, and the rows whose grammars have ``advanced`` beyond recall.
        """
        plan, states = self._inflight.pop()
        assert not self._inflight, "results of older plans are taken in first"
        is_published = any(row.num_tokens > 1 + row.num_draft or row.init is not None for row in plan.rows)
        for row, state in zip(plan.rows, states, strict=True):
            state.inflight, state.num_void, state.is_deferred = 0, 0, False
            state.computed -= row.num_tokens
            if state.status == "finished" and state.node is not None:
                self._holdings.surrender(state, keep=False)
        self._holdings.freed_slots[:0] = plan.finished_slots
        lost = range(len(states)) if not self._limits.shrink(plan.num_tokens, len(plan.rows)) else advanced
        reason = FinishReason(kind="abort", message=message, status=503, code="out_of_memory")
        outputs = [self._end(states[row], reason) for row in lost if states[row].status == "running"]
        logger.warning("%s Step %d is planned anew, in parts (%d requests).", message, plan.step_id, len(states))
        for state in list(self._running):
            self._requeue(state, keep=not is_published)
        if is_published:  # prefixes of which nothing was computed
            self.cache.flush()
        return outputs

    def close(self) -> None:
        """Ends what runs beside the loop; no request may be known any more."""
        self._grammars.close()

    def check(self) -> None:
        """Asserts the conservation of pages and slots; tests call it after every step."""
        holders = {id(state): state for state in self._running}
        holders.update((id(state), state) for _, states in self._inflight for state in states if state.node is not None)
        self._holdings.check(holders.values())
