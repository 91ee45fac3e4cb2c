"""Steps for which memory does not suffice: they are made again in parts, and no answer is another one for it."""

from __future__ import annotations

import pytest

from sgl.engine.base.errors import OutOfMemoryError
from sgl.engine.base.types import Add, Request, SamplingParams, StepPlan
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.limits import QUIET_STEPS, StepLimits
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel
from sgl.engine.loop import EngineLoop
from tests.core.simulation import Script, alone, random_run, run_to_end

PAGE = 4


@pytest.mark.parametrize("starvation", [0.02, 0.2])
def test_answers_are_those_of_steps_that_fit(starvation: float) -> None:
    assert sum(random_run(seed, starvation) for seed in range(60)) > 50


class Narrow(SimExecutor):
    """Has memory for so many tokens and rows."""

    most_tokens = most_rows = 1 << 30

    def forward(self, plan: StepPlan) -> None:
        if plan.num_tokens > self.most_tokens or len(plan.rows) > self.most_rows:
            raise OutOfMemoryError("Too little memory.")
        super().forward(plan)


def make_loop(requests: list[Request]) -> tuple[EngineLoop, Narrow, Script]:
    config = SchedulerConfig(64, PAGE, max_running=8, max_step_tokens=64, max_queued=20, max_len=128)
    executor, script = Narrow(SimModel(), PAGE), Script({0: [Add(request) for request in requests]})
    return EngineLoop(Scheduler(config, NoGrammars()), executor, script, script), executor, script


def requests(count: int, length: int) -> list[Request]:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    return [Request(rid=str(i), token_ids=(i,) * length, params=params) for i in range(count)]


def test_the_youngest_wait() -> None:
    asked = requests(6, 3)
    loop, executor, script = make_loop(asked)
    executor.most_rows = 2
    run_to_end(loop, script)
    assert list(script.finished) == [request.rid for request in asked]
    for request in asked:
        assert (script.tokens[request.rid], script.finished[request.rid]) == alone(executor.model, request)


def test_a_request_that_never_fits_ends_and_the_others_do_not() -> None:
    small, large = requests(2, 3), requests(3, 40)[2]
    loop, executor, script = make_loop([small[0], large, small[1]])
    executor.most_tokens = PAGE - 1
    run_to_end(loop, script)
    assert (script.finished[large.rid].status, script.finished[large.rid].code) == (503, "out_of_memory")
    for request in small:
        assert (script.tokens[request.rid], script.finished[request.rid]) == alone(executor.model, request)


def test_limits_shrink_by_half_and_come_back() -> None:
    limits = StepLimits(100, 8, least_tokens=10)
    assert limits.shrink(80, 8) and (limits.tokens, limits.rows) == (40, 4)
    assert limits.shrink(15, 2) and (limits.tokens, limits.rows) == (10, 1)
    assert limits.shrink(11, 1) and not limits.shrink(10, 1)
    seen = set()
    for _ in range(5 * QUIET_STEPS):
        limits.note()
        seen.add((limits.tokens, limits.rows))
    assert (20, 2) in seen and (limits.tokens, limits.rows) == (100, 8)
