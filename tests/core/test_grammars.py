"""Requests whose grammar is still being compiled, is refused, or settles tokens ahead of the model."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import FinishReason, Grammar, HostDraws, Output, Request, RowOutput, SamplingParams, Wants
from sgl.engine.core.grammar import OVER
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from tests.core.simulation import ModuloGrammar, ModuloGrammars

VOCAB = 97
ABORTED = FinishReason(kind="abort", message="gone", status=499, code="aborted")


def make_scheduler(grammars: ModuloGrammars | None = None, **overrides: Any) -> Scheduler:
    settings: dict[str, Any] = {"num_pages": 64, "page_size": 4, "max_running": 8, "max_step_tokens": 64}
    settings |= {"max_queued": 3, "max_len": 200, "policy": "fcfs"}
    return Scheduler(SchedulerConfig(**settings | overrides), grammars or ModuloGrammars(VOCAB))


def request(rid: str, source: str | None = None, **fields: Any) -> Request:
    grammar = Grammar("regex", source) if source else None
    return Request(rid=rid, token_ids=(1, 2, 3), params=SamplingParams(max_new_tokens=40, grammar=grammar), **fields)


def step(scheduler: Scheduler) -> tuple[list[str], list[Output]]:
    """One step of a model that takes the first token that is allowed."""
    outputs = scheduler.poll_grammars(0.0)
    plan = scheduler.schedule(0.0)
    if not plan.rows:
        return [], outputs
    masks = scheduler.masks()
    filled = dict(zip(masks.rows, masks.read(list(masks.rows)), strict=True))
    results = []
    for index, row in enumerate(plan.rows):
        bits = int.from_bytes(filled.get(index) or b"\x01", "little")
        first = (bits & -bits).bit_length() - 1
        results.append(RowOutput(token_ids=[first] if row.kind == "token" else []))
    outputs += scheduler.update(results)
    scheduler.check()
    return [row.rid for row in plan.rows], outputs


def test_a_grammar_that_compiles_holds_nobody_up() -> None:
    scheduler = make_scheduler()
    assert scheduler.add(request("slow", "2/4/0/4"), 1.0) == []
    scheduler.add(request("plain"), 1.0)
    assert scheduler.num_waiting == 2 and not scheduler.only_compiles
    took_part = [set(step(scheduler)[0]) for _ in range(4)]
    assert took_part == [{"plain"}, {"plain"}, {"plain", "slow"}, {"plain", "slow"}]


@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_broken_step_leaves_nothing_of_a_preempted_row(is_deferred: bool) -> None:
    grammars = ModuloGrammars(VOCAB)
    scheduler = make_scheduler(grammars, num_pages=12, jump_forward=False, max_len=48)
    scheduler.add(request("low", "5/18"), 0.0)
    _, (first,) = step(scheduler)
    scheduler.schedule(0.0)
    grammars.deferral = float(is_deferred)
    if is_deferred:
        scheduler.masks().read([0])
    else:
        assert not scheduler.masks().settle([0], HostDraws((ctypes.c_int64 * 1)(1), (0,)))
    scheduler.add(request("high", priority=5), 0.0)
    assert [row.rid for row in scheduler.schedule(0.0).rows] == ["high"], "low is preempted, its row in flight"
    ended = {output.rid for output in scheduler.fail("boom")}
    assert ended == ({"high"} if is_deferred else {"high", "low"}), "nobody knows what its grammar has taken in"
    grammars.deferral = 0.0
    tokens, before = first.token_ids, scheduler.num_steps
    while scheduler.has_work:
        _, outputs = step(scheduler)
        tokens += [token_id for output in outputs for token_id in output.token_ids]
    assert scheduler.num_steps - before == len(tokens) - 1, "every step brought one"
    assert tokens == [place % 5 for place in range(18 if is_deferred else 1)]


def test_the_time_until_the_grammar_is_there_is_not_queue_time() -> None:
    scheduler = make_scheduler()
    scheduler.add(request("a", "2/1/0/2"), 1.0)
    assert scheduler.only_compiles and scheduler.schedule(2.0).rows == ()
    assert scheduler.poll_grammars(3.5) == []
    scheduler.schedule(4.0)
    (last,) = scheduler.update([RowOutput(token_ids=[0])])
    assert (last.grammar_time_s, last.queue_time_s) == (2.5, 0.5)


def test_a_refused_grammar_ends_its_own_request() -> None:
    scheduler = make_scheduler()
    scheduler.add(request("bad", "!3"), 0.0)
    scheduler.add(request("good", "2/4"), 0.0)
    ended = [output for _ in range(3) for output in step(scheduler)[1] if output.rid == "bad"]
    (refused,) = ended
    assert refused.finish is not None
    assert (refused.finish.status, refused.finish.param) == (400, "regex")
    assert refused.prompt_tokens == 3 and not refused.token_ids
    while scheduler.has_work:
        step(scheduler)
    scheduler.check()


def test_a_compiling_request_can_be_aborted() -> None:
    scheduler = make_scheduler()
    scheduler.add(request("a", "2/4/0/9"), 0.0)
    (gone,) = scheduler.abort("a", ABORTED)
    assert gone.finish == ABORTED and not scheduler.has_work
    assert scheduler.poll_grammars(0.0) == [] and scheduler.flush_cache()


def test_compiling_requests_count_as_waiting() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.add(request(name, "2/4/0/9"), 0.0)
    (refused,) = scheduler.add(request("d"), 0.0)
    assert refused.finish is not None and refused.finish.status == 503
    assert {output.rid for output in scheduler.abort_all(ABORTED)} == set("abc")


def test_a_mask_that_fails_ends_its_own_request() -> None:
    class Failing(ModuloGrammars):
        def masks(self, states: Any) -> list[bytes | SglError | None]:
            return [SglError("Too complex.", param="regex"), *super().masks(states)[1:]]

    scheduler = make_scheduler(Failing(VOCAB))
    scheduler.add(request("a", "2/4"), 0.0)
    scheduler.add(request("b", "2/4"), 0.0)
    outputs = step(scheduler)[1]
    assert [output.rid for output in outputs if output.finish] == ["a"]
    (failed,) = [output for output in outputs if output.finish]
    assert failed.finish is not None and failed.finish.message == "Too complex." and failed.token_ids == []
    scheduler.check()


def test_a_mask_that_there_was_no_time_for_comes_later() -> None:
    class Slow(ModuloGrammars):
        num_asked = 0

        def masks(self, states: Any) -> list[bytes | SglError | None]:
            self.num_asked += 1
            return [None if self.num_asked % 3 else mask for mask in super().masks(states)]

    def tokens_of(grammars: ModuloGrammars) -> tuple[list[int], int]:
        scheduler = make_scheduler(grammars, jump_forward=False)
        scheduler.add(request("a", "5/6"), 0.0)
        tokens, num_steps = [], 0
        while scheduler.has_work:
            _, outputs = step(scheduler)
            num_steps += 1
            tokens += [token_id for output in outputs for token_id in output.token_ids]
        return tokens, num_steps

    expected, num_steps = tokens_of(ModuloGrammars(VOCAB))
    assert tokens_of(Slow(VOCAB)) == (expected, 3 * num_steps)


@pytest.mark.parametrize(
    ("wants", "jump_forward", "num_steps"),
    [(Wants(), True, 3), (Wants(), False, 20), (Wants(logprobs=True), True, 20), (Wants(hidden=True), True, 20)],
    ids=["jumps", "off", "logprobs", "hidden"],
)
def test_forced_tokens_take_no_steps_of_their_own(wants: Wants, jump_forward: bool, num_steps: int) -> None:
    scheduler = make_scheduler(jump_forward=jump_forward)
    scheduler.add(request("a", "2/20/9", wants=wants), 0.0)
    steps, tokens = 0, []
    while scheduler.has_work:
        _, outputs = step(scheduler)
        steps += 1
        tokens += [token_id for output in outputs for token_id in output.token_ids]
    grammar = ModuloGrammar(2, 20, VOCAB, 9)
    assert [grammar.accept(token_id) for token_id in tokens][-1] == OVER and steps == num_steps


def test_closing_ends_the_compiler() -> None:
    grammars = ModuloGrammars(VOCAB)
    make_scheduler(grammars).close()
    assert grammars.is_closed
