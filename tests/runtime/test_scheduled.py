"""The executor under the real scheduler and step loop: prefix hits, preemption, drafts, masks and overlap together."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from torch import Tensor

from sgl.engine.attn.backend import Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.base.types import Add, Grammar, Inbound, Outbound, Outputs, Request, Shutdown, TokenLogprob, Wants
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.loop import EngineLoop
from sgl.engine.runtime.executor import TorchExecutor
from tests.core.simulation import ModuloGrammars
from tests.runtime.driver import OracleDrafter
from tests.runtime.test_executor import MIXED, PAGE, flat, make_executor
from tests.runtime.tiny import MAX_LEN, VOCAB_SIZE, NoBackend, TinyModel

MAX_NEW = 14


class Mailbox:
    """Sends requests two at a time, keeps what comes back, and shuts the loop down after the last answer."""

    def __init__(self, requests: list[Request]) -> None:
        self.waiting = list(requests)
        self.unfinished = {request.rid for request in requests}
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.logprobs: dict[str, list[TokenLogprob]] = defaultdict(list)
        self.num_cached = self.num_preempted = 0

    def drain(self, timeout_s: float) -> list[Inbound]:
        now, self.waiting = self.waiting[:2], self.waiting[2:]
        return [Add(request) for request in now] if self.unfinished else [Shutdown()]

    def send(self, message: Outbound) -> None:
        for item in message.items if isinstance(message, Outputs) else ():
            self.tokens[item.rid] += item.token_ids
            self.logprobs[item.rid] += item.prompt_logprobs + item.logprobs
            if item.finish is not None:
                assert item.finish.kind == "length", item.finish
                self.unfinished.discard(item.rid)
                self.num_cached += item.cached_tokens


def make_requests(seed: int) -> list[Request]:
    rng = random.Random(seed)
    prefixes = [tuple(rng.randrange(VOCAB_SIZE) for _ in range(24)) for _ in range(2)]
    requests = []
    for index in range(14):
        grammar = Grammar("regex", "3/99") if index % 5 == 4 else None
        params = msgspec.structs.replace(rng.choice(MIXED), max_new_tokens=MAX_NEW, grammar=grammar)
        wants = Wants(logprobs=True, logprob_start=rng.choice([None, None, 0, 10]))
        prompt = rng.choice(prefixes) + tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 12)))
        requests.append(Request(rid=str(index), token_ids=prompt, params=params, wants=wants))
    return requests


def run(executor: TorchExecutor, requests: list[Request], overlap: int, num_pages: int, max_draft: int = 0) -> Mailbox:
    mailbox = Mailbox(requests)
    config = SchedulerConfig(num_pages, PAGE, 4, 16, 100, MAX_LEN, max_draft=max_draft, conservativeness=0.1)
    scheduler = Scheduler(config, ModuloGrammars(VOCAB_SIZE))
    EngineLoop(scheduler, executor, mailbox, mailbox, overlap=overlap).run()
    scheduler.check()
    mailbox.num_preempted = scheduler.num_preempted
    return mailbox


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("max_draft", [0, 2])
def test_answers_are_those_of_each_request_alone(overlap: int, max_draft: int) -> None:
    model, requests = TinyModel(2), make_requests(7)
    alone = {request.rid: run(make_executor(model), [request], 0, 90) for request in requests}
    answers = {request.token_ids: [*request.token_ids, *alone[request.rid].tokens[request.rid]] for request in requests}
    executor = make_executor(model, drafter=OracleDrafter(answers, max_draft, hit_rate=0.7))
    together = run(executor, requests, overlap, num_pages=22, max_draft=max_draft)
    assert together.num_cached > 0 and together.num_preempted > 0
    for rid, reference in alone.items():
        assert together.tokens[rid] == reference.tokens[rid]
        assert flat(together.logprobs[rid]) == pytest.approx(flat(reference.logprobs[rid]), abs=1e-5)


class HostWatch(TinyModel):
    """Compares what the host knows of a step with what the device computes from; counts steps that it knows."""

    num_known = num_unknown = 0

    def __call__(self, batch: ForwardBatch, kv: Sequence[KVLayer], backend: Any) -> Tensor:
        if batch.host is None:
            self.num_unknown += 1
        else:
            self.num_known += 1
            assert batch.host.seq_lens.tolist() == batch.seq_lens.tolist()
            for row, slot in enumerate(batch.host.slots):
                count = -(-int(batch.seq_lens[row]) // PAGE)
                pages = batch.host.pages[0][slot, :count]
                assert slot == batch.slots[row] and pages.tolist() == batch.page_table[0][row, :count].tolist()
        return super().__call__(batch, kv, backend)


@pytest.mark.parametrize("max_draft", [0, 2])
def test_the_host_knows_lengths_and_pages_as_the_device_does(max_draft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoBackend, "traits", Traits(plans_on_host=True))
    model, requests = HostWatch(2), make_requests(7)
    answers = {request.token_ids: [*request.token_ids, *([0] * MAX_NEW)] for request in requests}
    executor = make_executor(model, drafter=OracleDrafter(answers, max_draft, hit_rate=0.7))
    together = run(executor, requests, 1, num_pages=22, max_draft=max_draft)
    assert together.num_cached > 0 and together.num_preempted > 0
    assert model.num_known > 20 and (model.num_unknown > 0) == (max_draft > 0)
