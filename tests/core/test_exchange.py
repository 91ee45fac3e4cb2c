"""Weights are exchanged in the middle of random runs: every answer is wholly of the old ones or wholly of the new."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from sgl.engine.base.errors import ModelError
from sgl.engine.base.types import Add, Call, FinishReason, Inbound, Outbound, Reply, Request, SamplingParams
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel
from sgl.engine.loop import EngineLoop
from sgl.engine.runtime.weights import Source, Update
from tests.core.simulation import Script, alone, random_requests, run_to_end


@dataclass
class Answers(Script):
    """Keeps what calls were answered with, too."""

    replies: list[Reply] = field(default_factory=list)

    def send(self, message: Outbound) -> None:
        super().send(message)
        if isinstance(message, Reply):
            self.replies.append(message)


@dataclass
class SimWeights:
    """The weights of a simulated executor; an empty path is a checkpoint that is broken."""

    executor: SimExecutor
    requests: Scheduler
    new: SimModel
    num_closed: int = 0
    num_updates: int = 0

    def enter(self) -> None:
        """A simulated device is every thread's."""

    def read(self, path: str, load_format: str) -> tuple[Source, SimModel]:
        if not path:
            raise ModelError("it is broken.")
        return Source(path, load_format, Path(), ()), self.new

    def install(self, source: Source, model: SimModel) -> None:
        self.requests.forget_prefixes()
        self.executor.model = model
        self.num_updates += 1

    def close_update(self) -> None:
        self.num_closed += 1
        self.requests.resume()

    def update(self, path: str, drain_s: float) -> Update:
        update = Update(self, path, "auto", drain_s)  # type: ignore[arg-type]
        update.join()
        return update


def make_requests(rng: random.Random, vocab_size: int, max_len: int) -> list[Request]:
    found = random_requests(rng, rng.choice([5, 20]), vocab_size, max_len)
    return [
        msgspec.structs.replace(request, params=msgspec.structs.replace(request.params, grammar=None))
        for request in found
    ]


def run(seed: int, path: str = "new") -> tuple[int, int, int]:
    """One random run; returns how many answers were of the old weights, of the new ones, and cut off."""
    rng = random.Random(seed)
    page_size, max_len = rng.choice([1, 4, 16]), 64
    old = SimModel(vocab_size=31, seed=seed, draft_hit_rate=rng.random())
    new = SimModel(vocab_size=31, seed=seed + 10**6, draft_hit_rate=old.draft_hit_rate)
    requests = make_requests(rng, old.vocab_size, max_len)
    demand = sum(-(-(len(r.token_ids) + r.params.max_new_tokens) // page_size) for r in requests)
    config = SchedulerConfig(
        num_pages=max(-(-max_len // page_size), int(demand * rng.choice([0.3, 1.0]))),
        page_size=page_size,
        max_running=rng.choice([2, 8]),
        max_step_tokens=rng.choice([7, 16, 512]),
        max_queued=len(requests),
        max_len=max_len,
        policy=rng.choice(["fcfs", "lpm"]),
        max_draft=rng.randint(0, 2),
        seed=seed,
    )
    messages: dict[int, list[Inbound]] = defaultdict(list)
    for request in requests:
        messages[rng.randint(0, 20)].append(Add(request))
    drain_s = rng.choice([0.0, 0.005, 1e9])
    messages[rng.randint(0, 25)].append(Call(1, "update_weights", {"path": path, "drain_s": drain_s}))
    script = Answers(messages)
    executor = SimExecutor(old, page_size, config.max_draft)
    scheduler = Scheduler(config, NoGrammars())
    weights = SimWeights(executor, scheduler, new)
    loop = EngineLoop(
        scheduler,
        executor,
        script,
        script,
        overlap=rng.randint(0, 1),
        clock=lambda: executor.clock.now_s,
        operations={"update_weights": weights.update},
    )
    run_to_end(loop, script)
    loop.step()
    [reply] = script.replies
    assert reply.value is not None and reply.value["success"] is bool(path), reply
    assert weights.num_closed == 1 and not scheduler.has_work
    models = [old, new] if path else [old]
    counts = [0, 0, 0]
    for request in requests:
        wanted = [alone(model, request) for model in models]
        got = script.tokens[request.rid], script.finished[request.rid]
        if got[1].kind == "abort":
            assert drain_s < 1e9 and (got[1].code, got[1].status) == ("weights_updated", 503)
            assert got[0] == wanted[0][0][: len(got[0])]
            counts[2] += 1
        else:
            assert got in wanted, f"seed {seed}, request {request.rid}"
            counts[wanted.index(got)] += 1
    assert scheduler.num_used_pages == 0 and scheduler.flush_cache() and scheduler.cache.num_free == config.num_pages
    return counts[0], counts[1], counts[2]


def test_no_answer_mixes_weights() -> None:
    totals = [sum(column) for column in zip(*(run(seed) for seed in range(120)), strict=True)]
    assert min(totals) > 20, totals  # or these runs show nothing


def test_a_failed_exchange_disturbs_nobody() -> None:
    for seed in range(40):
        _, new, cut = run(seed, path="")
        assert (new, cut) == (0, 0)


@pytest.mark.parametrize("path", ["new", ""])
def test_after_an_exchange_everything_is_prepared_again(path: str) -> None:
    executor = SimExecutor(SimModel(), 4)
    scheduler = Scheduler(SchedulerConfig(8, 4, 2, 16, 10, 32), NoGrammars())
    weights = SimWeights(executor, scheduler, SimModel(seed=1))
    script = Answers({0: [Call(1, "update_weights", {"path": path, "drain_s": 0.0})]})
    left = [True, False]  # what is left to prepare, of each of two weights
    loop = EngineLoop(
        *(scheduler, executor, script, script),
        operations={"update_weights": weights.update},
        prepare=lambda: left.pop(0) if left else False,
    )
    assert loop.rest() and not loop.rest() and not left
    left += [True, False]
    assert not loop.rest() and len(left) == 2, "nothing looks again before there is a reason"
    loop.receive(0.0)
    assert not loop.rest() and len(left) == 2, "nothing is prepared for weights that go"
    loop.step()
    assert len(script.replies) == 1
    assert loop.rest() and not loop.rest() and not left


def test_a_shut_engine_refuses_and_opens_again() -> None:
    scheduler = Scheduler(SchedulerConfig(8, 4, 2, 16, 10, 32), NoGrammars())
    reason = FinishReason(kind="abort", message="Closed.", status=503, code="memory_released")
    scheduler.shut(reason)
    [output] = scheduler.add(Request(rid="a", token_ids=(1,)), 0.0)
    assert output.finish == reason and not scheduler.has_work
    scheduler.shut(None)
    request = Request(rid="a", token_ids=(1,), params=SamplingParams(max_new_tokens=3))
    assert scheduler.add(request, 0.0) == [] and scheduler.num_waiting == 1


@pytest.mark.parametrize("name", ["nonsense", "update_weights", "break"])
def test_a_call_that_cannot_be_answered_gets_a_sentence(name: str) -> None:
    def refuse() -> dict[str, object]:
        raise ModelError("That is no model.")

    def fail() -> dict[str, object]:
        raise ValueError("a bug")

    script = Answers({0: [Call(7, name)]})
    scheduler = Scheduler(SchedulerConfig(8, 4, 2, 16, 10, 32), NoGrammars())
    executor = SimExecutor(SimModel(), 4)
    loop = EngineLoop(scheduler, executor, script, script, operations={"update_weights": refuse, "break": fail})
    loop.receive(0.0)
    [reply] = script.replies
    expected = {
        "nonsense": ("The engine has no operation 'nonsense'.", 400),
        "update_weights": ("That is no model.", 400),
        "break": ("The engine failed at this: ValueError; its log has the details.", 500),
    }
    assert (reply.call_id, reply.error, reply.status) == (7, *expected[name])
