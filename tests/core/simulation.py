"""A randomized run of the whole loop over the simulated executor, checked after every step."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from sgl.engine.base.types import (
    Abort,
    Add,
    FinishReason,
    Grammar,
    Inbound,
    Outbound,
    Outputs,
    Request,
    SamplingParams,
)
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel
from sgl.engine.loop import EngineLoop


class ModuloGrammar:
    """Allows, at output position i, the tokens whose value modulo ``period`` equals i; ends after ``length``."""

    def __init__(self, period: int, length: int, vocab_size: int) -> None:
        self._period, self._length, self._vocab_size = period, length, vocab_size
        self._position = 0

    def mask(self) -> bytes:
        bits = bytearray((self._vocab_size + 7) // 8)
        for token_id in range(self._vocab_size):
            if token_id % self._period == self._position % self._period:
                bits[token_id >> 3] |= 1 << (token_id & 7)
        return bytes(bits)

    def accept(self, token_id: int) -> None:
        assert token_id % self._period == self._position % self._period, "a masked token was generated"
        self._position += 1

    def terminated(self) -> bool:
        return self._position >= self._length


class ModuloGrammars:
    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def compile(self, grammar: Grammar) -> ModuloGrammar:
        period, length = map(int, grammar.source.split("/"))
        return ModuloGrammar(period, length, self._vocab_size)


def alone(model: SimModel, request: Request) -> tuple[list[int], FinishReason]:
    """What a request must answer, computed from the definition: no batch, no cache, no pages."""
    params = request.params
    grammar = ModuloGrammars(model.vocab_size).compile(params.grammar) if params.grammar else None
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(request.eos_ids))
    state = model.seed
    for token_id in request.token_ids:
        state = model.absorb(state, token_id)
    tokens: list[int] = []
    while len(tokens) < params.max_new_tokens:
        token_id = model.next_token(state, grammar.mask() if grammar else None)
        tokens.append(token_id)
        state = model.absorb(state, token_id)
        if token_id in stops and len(tokens) > params.min_new_tokens:
            return tokens, FinishReason(kind="stop", matched=token_id)
        if grammar is not None:
            grammar.accept(token_id)
            if grammar.terminated():
                return tokens, FinishReason(kind="stop")
    return tokens, FinishReason(kind="length")


@dataclass
class Script:
    """An inbox whose messages come at given steps, and the outbox that collects the answers."""

    messages: dict[int, list[Inbound]]
    step: int = 0
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[str, FinishReason] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)

    def drain(self, timeout_s: float) -> list[Inbound]:
        return self.messages.pop(self.step, [])

    def send(self, message: Outbound) -> None:
        if isinstance(message, Outputs):
            for output in message.items:
                assert output.rid not in self.finished, "output after the end"
                self.tokens[output.rid] += output.token_ids
                if output.finish is not None:
                    self.finished[output.rid] = output.finish
                    self.cached[output.rid] = output.cached_tokens


def random_requests(rng: random.Random, count: int, vocab_size: int, max_len: int) -> list[Request]:
    """Requests with shared prefixes, odd lengths, stops, grammars, namespaces and priorities."""
    stems = [[rng.randrange(vocab_size) for _ in range(rng.randint(1, max_len // 2))] for _ in range(3)]
    requests = []
    for number in range(count):
        stem = rng.choice(stems)
        prompt = stem[: rng.randint(0, len(stem))] + [
            rng.randrange(vocab_size) for _ in range(rng.choice([0, 1, 2, 5, 17]))
        ]
        prompt = prompt[: max_len - 1] or [1]
        grammar = Grammar("regex", f"{rng.randint(1, 5)}/{rng.randint(1, 30)}") if rng.random() < 0.2 else None
        params = SamplingParams(
            max_new_tokens=rng.choice([0, 1, 2, rng.randint(0, max_len - len(prompt))])
            if max_len - len(prompt) >= 2
            else 1,
            min_new_tokens=0 if grammar else rng.choice([0, 0, 3]),
            stop_token_ids=(rng.randrange(vocab_size),) if rng.random() < 0.3 else (),
            ignore_eos=rng.random() < 0.3,
            grammar=grammar,
        )
        requests.append(
            Request(
                rid=f"r{number}",
                token_ids=tuple(prompt),
                params=params,
                eos_ids=(0, 1),
                priority=rng.choice([0, 0, 0, 1]),
                cache_salt=rng.choice(["", "", "", "salt"]),
            )
        )
    return requests


def random_run(seed: int) -> None:
    """Runs one random configuration over random requests and asserts everything that must always hold."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 16])
    max_len = rng.choice([24, 64, 96])
    model = SimModel(vocab_size=rng.choice([5, 31, 97]), seed=seed, draft_hit_rate=rng.random())
    requests = random_requests(rng, rng.choice([3, 10, 40]), model.vocab_size, max_len)
    demand = sum(-(-(len(r.token_ids) + r.params.max_new_tokens) // page_size) for r in requests)
    split_prompts = rng.random() < 0.9
    config = SchedulerConfig(
        num_pages=max(-(-max_len // page_size), int(demand * rng.choice([0.2, 0.5, 0.5, 2.0]))),
        page_size=page_size,
        max_running=rng.choice([1, 3, 8]),
        max_step_tokens=rng.choice([1, 7, 16, 64, 512]) if split_prompts else max_len,
        split_prompts=split_prompts,
        max_queued=len(requests),
        max_len=max_len,
        policy=rng.choice(["fcfs", "lpm", "dfs-weight", "random"]),
        conservativeness=rng.choice([0.1, 1.0, 2.0]),
        max_draft=rng.randint(0, 3),
        prefix_caching=rng.random() < 0.8,
        seed=seed,
    )
    aborted = {request.rid for request in requests if rng.random() < 0.1}
    messages: dict[int, list[Inbound]] = defaultdict(list)
    spread = rng.choice([0, 20])
    for request in requests:
        start = rng.randint(0, spread)
        messages[start].append(Add(request))
        if request.rid in aborted:
            messages[start + rng.randint(0, 15)].append(Abort(request.rid))
    script = Script(messages)
    executor = SimExecutor(model, page_size, config.max_draft)
    scheduler = Scheduler(config, ModuloGrammars(model.vocab_size))
    loop = EngineLoop(
        scheduler, executor, script, script, overlap=rng.randint(0, 1), clock=lambda: executor.clock.now_s
    )
    run_to_end(loop, script)
    for request in requests:
        tokens, finish = alone(model, request)
        got = script.finished[request.rid]
        if got.kind == "abort":
            assert request.rid in aborted, got
            assert script.tokens[request.rid] == tokens[: len(script.tokens[request.rid])]
        else:
            assert (script.tokens[request.rid], got) == (tokens, finish), f"seed {seed}, request {request.rid}"
    assert scheduler.num_used_pages == 0
    assert scheduler.flush_cache() and scheduler.cache.num_free == config.num_pages


def run_to_end(loop: EngineLoop, script: Script, max_steps: int = 20_000) -> None:
    """Steps the loop until everything is answered; asserts conservation every step and that it never stalls."""
    idle = 0
    while script.messages or loop.scheduler.has_work:
        loop.receive(0.0)
        idle = 0 if loop.step() or script.messages else idle + 1
        loop.scheduler.check()
        script.step += 1
        assert idle < 3, "the loop stalls with work left"
        assert script.step < max_steps, "a request starves"
