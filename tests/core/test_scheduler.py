from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest

from sgl.engine.base.types import FinishReason, Output, Request, RowOutput, SamplingParams, Wants
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from tests.core.simulation import ModuloGrammars

PAGE = 4


def make_scheduler(**overrides: Any) -> Scheduler:
    settings: dict[str, Any] = {"num_pages": 64, "page_size": PAGE, "max_running": 8, "max_step_tokens": 64}
    settings |= {"max_queued": 100, "max_len": 200, "policy": "fcfs"}
    return Scheduler(SchedulerConfig(**settings | overrides), ModuloGrammars(97))


def make_request(rid: str, tokens: int | tuple[int, ...], max_new_tokens: int = 4, **fields: Any) -> Request:
    token_ids = tuple(range(tokens)) if isinstance(tokens, int) else tokens
    return Request(rid=rid, token_ids=token_ids, params=SamplingParams(max_new_tokens=max_new_tokens), **fields)


def step(scheduler: Scheduler) -> tuple[list[str], list[Output]]:
    """One step of a model that always says token 50; returns who took part and what came out."""
    plan = scheduler.schedule(0.0)
    if not plan.rows:
        return [], []
    outputs = scheduler.update([RowOutput(token_ids=[50] if row.kind == "token" else []) for row in plan.rows])
    scheduler.check()
    return [row.rid for row in plan.rows], outputs


def run_all(scheduler: Scheduler) -> dict[str, Output]:
    last = {}
    while scheduler.has_work:
        for output in step(scheduler)[1]:
            last[output.rid] = output
    return last


def test_second_identical_prompt_takes_all_full_pages_from_the_cache() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 14), 0.0)
    assert run_all(scheduler)["a"].cached_tokens == 0
    scheduler.add(make_request("b", 14), 0.0)
    assert run_all(scheduler)["b"].cached_tokens == 12
    assert scheduler.flush_cache()
    scheduler.add(make_request("c", 14), 0.0)
    assert run_all(scheduler)["c"].cached_tokens == 0


def test_requests_of_one_step_share_their_prefix_pages() -> None:
    scheduler = make_scheduler()
    for name in "abcd":
        scheduler.add(make_request(name, (*range(32), ord(name))), 0.0)
    plan = scheduler.schedule(0.0)
    assert [row.num_tokens for row in plan.rows] == [33, 1, 1, 1]
    tables = [row.new_pages.pages[:8] for row in plan.rows if row.new_pages is not None]
    assert len(tables) == 4 and len(set(tables)) == 1
    assert scheduler.num_used_pages == 8 + 4


def test_chunks_of_two_equal_prompts_in_lockstep_are_computed_once() -> None:
    scheduler = make_scheduler(max_step_tokens=16)
    for name in "ab":
        scheduler.add(make_request(name, (*range(60), ord(name))), 0.0)
    computed = 0
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        computed += sum(row.num_tokens for row in plan.rows if row.kind == "none")
        scheduler.update([RowOutput(token_ids=[50] if row.kind == "token" else []) for row in plan.rows])
        scheduler.check()
    assert computed <= 60


def test_decodes_run_beside_prompt_chunks_within_the_budget() -> None:
    scheduler = make_scheduler(max_step_tokens=16)
    scheduler.add(make_request("short", 3, max_new_tokens=8), 0.0)
    step(scheduler)
    scheduler.add(make_request("long", tuple(range(100, 160))), 0.0)
    for _ in range(3):
        plan = scheduler.schedule(0.0)
        assert [row.rid for row in plan.rows] == ["short", "long"]
        assert plan.num_tokens <= 16
        scheduler.update([RowOutput(token_ids=[50] if row.kind == "token" else []) for row in plan.rows])


@pytest.mark.parametrize(
    ("policy", "expected"), [("fcfs", ["x", "y", "z"]), ("lpm", ["z", "y", "x"]), ("dfs-weight", ["y", "z", "x"])]
)
def test_policies_order_the_queue(policy: str, expected: list[str]) -> None:
    scheduler = make_scheduler(policy=policy, max_running=1)
    stem = tuple(range(PAGE))
    scheduler.add(make_request("warm", (*stem, *range(10, 10 + 2 * PAGE), 9)), 0.0)
    run_all(scheduler)
    scheduler.add(make_request("x", tuple(range(30, 45))), 0.0)
    scheduler.add(make_request("y", (*stem, *range(60, 71)) if policy == "lpm" else (*stem, *range(10, 21))), 0.0)
    scheduler.add(make_request("z", (*stem, *range(10, 21))), 0.0)
    order: list[str] = []
    while scheduler.has_work:
        order += [rid for rid in step(scheduler)[0] if rid not in order]
    assert order == expected


def test_random_policy_is_reproducible() -> None:
    def order(seed: int) -> list[str]:
        scheduler = make_scheduler(policy="random", max_running=1, seed=seed)
        for name in "abcdef":
            scheduler.add(make_request(name, 5, max_new_tokens=1), 0.0)
        return [rid for _ in range(6) for rid in step(scheduler)[0]]

    assert order(1) == order(1)
    assert sorted(order(1)) == list("abcdef")
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_longest_prefix_first_cannot_starve_a_request() -> None:
    scheduler = make_scheduler(policy="lpm", max_running=1)
    hot = tuple(range(3 * PAGE))
    scheduler.add(make_request("warm", (*hot, 90), max_new_tokens=1), 0.0)
    run_all(scheduler)
    scheduler.add(make_request("cold", tuple(range(40, 60)), max_new_tokens=1), 0.0)
    admitted: list[str] = []
    for number in range(200):
        scheduler.add(make_request(f"hot{number}", (*hot, 90), max_new_tokens=1), 0.0)
        admitted += step(scheduler)[0]
    assert "cold" in admitted


def test_priority_goes_first_and_preempts() -> None:
    scheduler = make_scheduler(max_running=1)
    scheduler.add(make_request("low", 8, max_new_tokens=20), 0.0)
    step(scheduler)
    scheduler.add(make_request("high", tuple(range(50, 58)), max_new_tokens=2, priority=5), 0.0)
    assert step(scheduler)[0] == ["high"]
    assert scheduler.num_preempted == 1
    last = run_all(scheduler)
    assert last["low"].finish == FinishReason(kind="length")
    assert last["low"].num_preempted == 1


def test_preemption_logs_the_contracted_line_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make_scheduler(num_pages=8, conservativeness=0.0, max_len=32)
    for name in "ab":
        scheduler.add(make_request(name, (ord(name), *range(7)), max_new_tokens=16), 0.0)
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    with caplog.at_level(logging.INFO):
        while scheduler.has_work:
            for output in step(scheduler)[1]:
                tokens[output.rid] += output.token_ids
    assert {rid: len(ids) for rid, ids in tokens.items()} == {"a": 16, "b": 16}
    assert scheduler.num_preempted >= 1
    line = next(r.getMessage() for r in caplog.records if "out of memory" in r.getMessage())
    assert line.lower().startswith("decode out of memory happened, #retracted_reqs: 1, #new_token_ratio: ")


def test_conservativeness_decides_how_many_are_admitted() -> None:
    def admitted(conservativeness: float) -> int:
        scheduler = make_scheduler(num_pages=16, conservativeness=conservativeness, max_len=64)
        for number in range(4):
            scheduler.add(make_request(f"r{number}", (number, *range(7)), max_new_tokens=32), 0.0)
        return len(step(scheduler)[0])

    assert admitted(0.1) == 4
    assert admitted(2.0) == 1


def test_a_full_queue_and_an_oversized_request_are_refused_with_a_reason() -> None:
    scheduler = make_scheduler(max_queued=1)
    assert scheduler.add(make_request("a", 4), 0.0) == []
    (refused,) = scheduler.add(make_request("b", 4), 0.0)
    assert refused.finish is not None and (refused.finish.status, refused.finish.code) == (503, "server_overloaded")
    scheduler = make_scheduler(max_len=10)
    (refused,) = scheduler.add(make_request("c", 8, max_new_tokens=3), 0.0)
    assert refused.finish is not None and refused.finish.status == 400 and "11 tokens" in refused.finish.message


def test_abort_works_in_every_state() -> None:
    scheduler = make_scheduler(max_running=2)
    aborted = FinishReason(kind="abort", message="client left", status=499)
    for rid in ("a", "b", "c", "other"):
        scheduler.add(make_request(rid, 6), 0.0)
    step(scheduler)  # a and b run, c and other wait
    plan = scheduler.schedule(0.0)  # and one more step is in flight
    assert [output.rid for rid in "abc" for output in scheduler.abort(rid, aborted)] == ["a", "b", "c"]
    assert scheduler.abort("a", aborted) == []
    assert scheduler.update([RowOutput(token_ids=[50]) for _ in plan.rows]) == []
    scheduler.check()
    assert set(run_all(scheduler)) == {"other"}
    assert scheduler.num_used_pages == 0


def test_prompts_stay_whole_if_they_must_not_be_split() -> None:
    scheduler = make_scheduler(max_step_tokens=64, split_prompts=False)
    for name in "ab":
        scheduler.add(make_request(name, (ord(name), *range(39))), 0.0)
    sizes = []
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        sizes += [row.num_tokens for row in plan.rows if row.init is not None]
        scheduler.update([RowOutput(token_ids=[50]) for _ in plan.rows])
    assert sizes == [40, 40]


def test_queue_time_counts_waiting_only_and_once() -> None:
    scheduler = make_scheduler(max_running=1)
    scheduler.add(make_request("low", 8, max_new_tokens=20), 0.0)
    now_s = {"start": 1.0, "preempt": 50.0, "resume": 51.0}
    scheduler.schedule(now_s["start"])
    scheduler.update([RowOutput(token_ids=[50])])
    scheduler.add(make_request("high", tuple(range(50, 58)), max_new_tokens=1, priority=5), 50.0)
    scheduler.schedule(now_s["preempt"])
    scheduler.update([RowOutput(token_ids=[50])])
    scheduler.schedule(now_s["resume"])
    scheduler.update([RowOutput(token_ids=[50])])
    assert run_all(scheduler)["low"].queue_time_s == pytest.approx(1.0 + 1.0)


def test_zero_new_tokens_computes_the_prompt_and_ends() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 9, max_new_tokens=0), 0.0)
    (last,) = step(scheduler)[1]
    assert last.finish == FinishReason(kind="length") and last.token_ids == []
    scheduler.add(make_request("b", 9), 0.0)
    assert run_all(scheduler)["b"].cached_tokens == 8


def test_wanted_prompt_logprobs_are_not_skipped_by_the_cache() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 16), 0.0)
    run_all(scheduler)
    scheduler.add(make_request("b", 16, wants=Wants(logprob_start=7)), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan.rows[0].computed == 4, "position 6 predicts token 7, so page 1 must be computed"


def test_a_broken_step_ends_running_requests_and_forgets_the_cache() -> None:
    scheduler = make_scheduler(max_running=1)
    scheduler.add(make_request("a", 9), 0.0)
    scheduler.add(make_request("b", 9), 0.0)
    scheduler.schedule(0.0)
    (failed,) = scheduler.fail("boom")
    assert failed.rid == "a" and failed.finish is not None and failed.finish.status == 500
    scheduler.check()
    assert scheduler.cache.num_cached == 0
    assert run_all(scheduler)["b"].cached_tokens == 0


def test_an_error_of_one_row_ends_only_that_request() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 5), 0.0)
    scheduler.add(make_request("b", 5), 0.0)
    scheduler.schedule(0.0)
    first, second = scheduler.update([RowOutput(error="logits are NaN"), RowOutput(token_ids=[50])])
    assert first.finish is not None and first.finish.message == "logits are NaN"
    assert second.finish is None
    assert run_all(scheduler)["b"].finish == FinishReason(kind="length")


def test_a_decode_comes_with_the_same_row_until_a_page_is_full() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PAGE, max_new_tokens=2 * PAGE + 2), 0.0)
    rows = []
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        rows.append(plan.rows[0])
        scheduler.update([RowOutput(token_ids=[50])])
        scheduler.check()
    again = [row is before for before, row in pairwise(rows)]
    # The prompt; then a row with a page, which the next does not have, and is repeated while the page lasts.
    page = [False, False, *[True] * (PAGE - 2)]
    assert again == (page * 3)[: len(again)]
    assert [row.new_pages.pages if row.new_pages else () for row in rows[1:]].count(()) == len(rows) - 1 - 3
