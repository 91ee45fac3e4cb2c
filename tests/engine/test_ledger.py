"""Where the time of requests went: against a simulated engine whose clock and steps are known exactly."""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Sequence

import pytest

from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.api.explanation import Explanation, explain
from sgl.engine.api.ledger import MAX_RUNS, Book, Ledger, Run, Wait
from sgl.engine.base.ledger import Chunk, Hold, Passage, StepNote, StepTimeFit
from sgl.engine.base.types import Add, Grammar, Inbound, Outbound, Outputs, Request, SamplingParams, StepPlan
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel
from sgl.engine.loop import EngineLoop
from tests.core.simulation import ModuloGrammars
from tests.engine.front import checkpoint, greedy, with_engine

MODEL = SimModel(step_s=0.004, token_s=0.0003)


class Noting(SimExecutor):
    """Remembers by itself what it was made to compute."""

    def __init__(self, page_size: int) -> None:
        super().__init__(MODEL, page_size)
        self.shares: dict[str, list[int]] = defaultdict(list)  # tokens of each step that a request had a share of

    def forward(self, plan: StepPlan) -> None:
        for row in plan.rows:
            self.shares[row.rid].append(row.num_tokens)
        super().forward(plan)


class Simulated:
    """An engine in virtual time, and a book that is kept as the front keeps it; text and network take no time."""

    def __init__(self, requests: Sequence[tuple[float, Request]], overlap: int = 0, **options: int) -> None:
        config = {"num_pages": 400, "page_size": 4, "max_running": 16, "max_step_tokens": 256, **options}
        self.executor = Noting(config["page_size"])
        shape = SchedulerConfig(**config, max_queued=100, max_len=400, policy="fcfs", prefix_caching=False)
        self.scheduler = Scheduler(shape, ModuloGrammars(MODEL.vocab_size))
        self.loop = EngineLoop(
            self.scheduler, self.executor, self, self, overlap=overlap, clock=lambda: self.now_s, tells_steps=True
        )
        self.book = Book(1000)
        self.ledgers: dict[str, Ledger] = {}
        self._waiting = sorted(requests, key=lambda pair: pair[0])
        while self._waiting or self.scheduler.has_work:
            if not self.scheduler.has_work:
                self.executor.clock.now_s = max(self.now_s, self._waiting[0][0])
            self.loop.receive(0.0)
            if not self.loop.step() and self.scheduler.only_compiles:
                self.executor.clock.now_s += 0.001

    @property
    def now_s(self) -> float:
        return self.executor.clock.now_s

    def drain(self, timeout_s: float) -> list[Inbound]:
        due = [pair for pair in self._waiting if pair[0] <= self.now_s]
        self._waiting = self._waiting[len(due) :]
        for sent_s, request in due:
            passage = Passage(sent_s)
            ledger = Ledger(request.rid, request.rid, passage, sent_s, sent_s, sent_s, len(request.token_ids))
            self.ledgers[request.rid] = ledger
            self.book.open(request.rid, ledger)
        return [Add(request) for _, request in due]

    def send(self, message: Outbound) -> None:
        if not isinstance(message, Outputs):
            return
        if message.step is not None:
            self.book.follow(message.step, [output.rid for output in message.items if output.token_ids])
        for output in message.items:
            ledger = self.ledgers[output.rid]
            ledger.deliver(len(output.token_ids), self.now_s, self.now_s)
            if output.finish is not None:
                self.book.close(output.rid, output.finish.kind)
                ledger.passage.sent_s = self.now_s

    def explained(self, rid: str) -> Explanation:
        [ledger] = self.book.find(rid)
        return explain(ledger, self.book, str)


def request(rid: str, prompt: int, output: int, grammar: str = "") -> Request:
    rng = random.Random(rid)
    params = SamplingParams(
        max_new_tokens=output, ignore_eos=True, grammar=Grammar("regex", grammar) if grammar else None
    )
    return Request(rid=rid, token_ids=tuple(rng.randrange(97) for _ in range(prompt)), params=params)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_parts_sum_to_what_was_observed(seed: int, overlap: int) -> None:
    """Under preemption, chunks, queues and grammars; every step that a request had a share of is in its ledger."""
    rng = random.Random(seed)
    requests = [
        (
            rng.uniform(0, 0.3),
            request(f"r{i}", rng.randint(1, 90), rng.randint(1, 60), rng.choice(["", "", "3/90/0/5"])),
        )
        for i in range(25)
    ]
    options = {"num_pages": rng.choice([80, 400]), "max_running": rng.choice([4, 16]), "max_step_tokens": 64}
    found = Simulated(requests, overlap, **options)
    assert len(found.book.everything()) == len(requests)
    for sent_s, one in requests:
        told, ledger = found.explained(one.rid), found.ledgers[one.rid]
        assert told.total_ms == pytest.approx(1e3 * (ledger.passage.sent_s - sent_s), rel=1e-9)
        assert sum(told.parts.values()) == pytest.approx(told.total_ms)
        at_ms = 0.0
        for piece in told.pieces:
            assert piece.begin_ms == pytest.approx(at_ms, abs=1e-6) and piece.ms >= -1e-9
            at_ms = piece.begin_ms + piece.ms
            if piece.num_steps:
                inside = piece.schedule_ms + piece.forward_ms + piece.sample_ms + piece.gap_ms
                assert inside == pytest.approx(piece.ms, abs=1e-6)
        shares = found.executor.shares[one.rid]
        late = overlap  # a step that was under way when the request ended brings it nothing
        assert len(shares) - late <= told.num_steps <= len(shares)
        assert sum(piece.tokens for piece in told.pieces) in (sum(shares), sum(shares) - late)
        assert told.completion_tokens == one.params.max_new_tokens
        assert ("grammar" in told.parts) == (one.params.grammar is not None)
    if options["num_pages"] == 80 and options["max_running"] == 16:
        assert any("preempted" in found.explained(one.rid).parts for _, one in requests)


@pytest.mark.parametrize("seed", range(3))
def test_the_counterfactual_is_what_a_run_alone_takes(seed: int) -> None:
    rng = random.Random(seed)
    requests = [(rng.uniform(0, 0.05), request(f"r{i}", rng.randint(1, 60), rng.randint(1, 30))) for i in range(12)]
    crowd = Simulated(requests, max_step_tokens=1024)
    for _, one in requests:
        by_itself = Simulated([(0.0, one)], max_step_tokens=1024)
        assert crowd.explained(one.rid).alone.total_ms == pytest.approx(1e3 * by_itself.now_s, rel=1e-6)
        assert by_itself.explained(one.rid).alone.total_ms == pytest.approx(1e3 * by_itself.now_s, rel=1e-6)


def test_delays_name_their_cause() -> None:
    """A long prompt comes between the tokens of one request, and keeps another out of two steps."""
    requests = [
        (0.0, request("first", 4, 30)),
        (0.02, request("long", 300, 2)),
        (0.0201, request("late", 200, 2)),
    ]
    found = Simulated(requests, max_step_tokens=129)
    first, late = found.explained("first"), found.explained("late")
    assert any(delay.cause.startswith("decode: chunk of long (128 tokens)") for delay in first.delays)
    [queue] = [piece for piece in late.pieces if piece.part == "queue" and piece.ms]
    assert "steps had their tokens" in queue.cause and "chunk of long" in queue.cause
    assert late.delays[0].ms == pytest.approx(queue.ms)
    assert found.explained("long").parts["prefill"] == pytest.approx(3e3 * MODEL.time.seconds(129))


def test_slots_and_memory_are_named() -> None:
    busy = Simulated([(0.0, request("a", 4, 20)), (0.0, request("b", 4, 2))], max_running=1)
    assert "no slot was free" in next(piece.cause for piece in busy.explained("b").pieces if piece.part == "queue")
    full = Simulated([(0.0, request("a", 100, 20)), (0.001, request("b", 90, 2))], num_pages=32)
    assert "no memory" in next(
        piece.cause for piece in full.explained("b").pieces if piece.part == "queue" and piece.ms
    )


def ledger(sent_s: float = 0.0) -> Ledger:
    return Ledger("a", "a", Passage(sent_s), sent_s, sent_s, sent_s, 3)


def note(step_id: int, chunks: tuple[Chunk, ...] = (), decodes: int = 1) -> StepNote:
    begin = 0.01 * step_id
    return StepNote(step_id, begin, begin + 0.001, begin + 0.008, begin + 0.009, decodes, chunks, Hold.NOTHING)


def test_steps_that_are_alike_are_one_entry() -> None:
    book, one = Book(1), ledger()
    book.open("a#0", one)
    book.follow(note(1, (Chunk("a#0", 3, 0, 0.001),), 0), [])
    one.deliver(1, 0.02, 0.02)
    for step_id in range(2, 1000):
        book.follow(note(step_id), ["a#0"])
    runs = [entry for entry in one.entries if isinstance(entry, Run)]
    assert [(run.part, run.count) for run in runs] == [("prefill", 1), ("decode", 998)]
    assert runs[1].schedule_s == pytest.approx(998 * 0.001) and runs[1].gap_s == pytest.approx(998 * 0.001)


def test_memory_is_bounded_whatever_happens() -> None:
    book, one = Book(2), ledger()
    book.open("a#0", one)
    for step_id in range(1, 5000):
        others = (Chunk("b#1", 2 + step_id % 7),) if step_id % 2 else ()
        book.follow(note(step_id, others), ["a#0"])
    assert len(one.entries) <= MAX_RUNS + 1 and one.num_steps == 4999
    assert sum(entry.count for entry in one.entries if isinstance(entry, Run)) == 4999
    largest = [entry.count for entry in one.entries if isinstance(entry, Run)]
    assert max(largest) < 300  # neighbours were joined in pairs
    for step_id in range(6000, 8000, 2):  # it misses every other step
        book.follow(note(step_id), ["a#0"])
    assert len(one.entries) <= MAX_RUNS + 1 and one.num_steps == 5999
    parts = list(one.parts(81.0))
    assert all(a[2] == b[1] for a, b in itertools.pairwise(parts)) and parts[-1][2] == 81.0
    book.close("a#0", "length")
    for number in range(10):
        book.open(f"{number}", ledger())
        book.close(f"{number}", "stop")
    assert len(book.everything()) == 2


def test_an_engine_that_tells_no_steps_still_has_ledgers() -> None:
    """Requests whose engine is another one: what is not the front's is the queue."""
    book, one = Book(1), ledger(time.monotonic())
    book.open("a#0", one)
    [found] = book.find("a")
    told = explain(found, book, str)
    assert (told.state, set(told.parts)) == ("running", {"parse", "tokenize", "hand over", "queue"})
    book.close("a#0", "abort")
    assert explain(found, book, str).state == "abort" and not [e for e in one.entries if isinstance(e, Wait)]


def test_a_fit_finds_the_line_and_survives_equal_steps() -> None:
    fit = StepTimeFit()
    assert (fit.value().step_s, fit.value().token_s) == (0.0, 0.0)
    for _ in range(3):
        fit.add(4, 0.01)
    assert fit.value().seconds(4) == pytest.approx(0.01) and fit.value().token_s == 0.0
    for count in (1, 7, 90):
        fit.add(count, 0.002 + 0.002 * count)
    assert fit.value().step_s == pytest.approx(0.002, rel=1e-6)
    falling = StepTimeFit()
    for count in (1, 2, 3):
        falling.add(count, 0.01 - 0.001 * count)
    assert falling.value().token_s == 0.0 and falling.value().step_s > 0


def test_a_real_front_keeps_ledgers(tmp_path_factory: pytest.TempPathFactory) -> None:
    async def use(engine: AsyncEngine) -> tuple[list[Explanation], float]:
        began_s = time.monotonic()
        [item async for item in engine.generate(GenerateRequest(rid="x", text="ab", sampling=greedy(5), n=2))]
        took_s = time.monotonic() - began_s
        return [explain(one, engine.ledgers, str) for one in engine.ledgers.find("x")], took_s

    answers, took_s = with_engine(checkpoint(tmp_path_factory.mktemp("ledger")), use)
    assert [answer.rid for answer in answers] == ["x:0", "x:1"]
    for answer in answers:
        assert answer.completion_tokens == 5 and answer.state == "length"
        assert 0 < answer.total_ms <= 1e3 * took_s
    off = with_engine(checkpoint(tmp_path_factory.mktemp("off")), use, observe__request_ledger_size=0)
    assert off[0] == []
