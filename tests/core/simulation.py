"""A randomized run of the whole loop over the simulated executor, checked after every step."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sgl.engine.base.errors import OutOfMemoryError, SglError
from sgl.engine.base.types import (
    Abort,
    Add,
    FinishReason,
    Grammar,
    HostDraws,
    Inbound,
    Masks,
    Outbound,
    Outputs,
    Request,
    SamplingParams,
    StepPlan,
    Wants,
)
from sgl.engine.core.grammar import FORCED, OVER, Standing
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel, SimResult
from sgl.engine.loop import EngineLoop


class ModuloGrammar:
    """Allows, at output position i, the tokens whose value modulo ``period`` equals i; ends after ``length``.

    The first ``num_forced`` of every ten positions allow one token only.
    """

    def __init__(self, period: int, length: int, vocab_size: int, num_forced: int = 0) -> None:
        self._period, self._length, self._vocab_size, self._num_forced = period, length, vocab_size, num_forced
        self._position = 0
        self._settled: int | None = None

    def _only(self, position: int) -> int | None:
        only = position % self._period + position // 10 % 3 * self._period
        return only % self._vocab_size if position % 10 < self._num_forced else None

    def forced(self) -> list[int]:
        tokens = []
        for position in range(self._position, self._length):
            token_id = self._only(position)
            if token_id is None:
                break
            tokens.append(token_id)
        return tokens

    def mask(self) -> bytes:
        bits = bytearray((self._vocab_size + 7) // 8)
        only = self._only(self._position)
        if only is not None:
            bits[only >> 3] |= 1 << (only & 7)
            return bytes(bits)
        for token_id in range(self._vocab_size):
            if token_id % self._period == self._position % self._period:
                bits[token_id >> 3] |= 1 << (token_id & 7)
        return bytes(bits)

    def _expected(self) -> Sequence[int]:
        only = self._only(self._position)
        return [only] if only is not None else range(self._position % self._period, self._vocab_size, self._period)

    def settle(self, likeliest: int) -> int:
        """Half of the time as good as a mask."""
        assert self._settled is None, "one place was settled twice"
        expected = self._expected()
        if self._position % 2 and (likeliest in expected or len(expected) == 1):
            self._settled = likeliest if likeliest in expected else expected[0]
        return -1 if self._settled is None else self._settled

    def accept(self, token_id: int) -> Standing:
        assert self._settled in (None, token_id), "another token was generated than the one that was settled"
        assert token_id in self._expected(), "a masked token was generated"
        self._position += 1
        self._settled = None
        return OVER if self._position >= self._length else FORCED

    @property
    def is_ahead(self) -> bool:
        return self._settled is not None


class ModuloTicket:
    """A grammar that is there the ``delay``-th time somebody looks."""

    def __init__(self, state: ModuloGrammar | SglError, delay: int) -> None:
        self._state, self._delay = state, delay

    def poll(self) -> ModuloGrammar | None:
        self._delay -= 1
        if self._delay > 0:
            return None
        if isinstance(self._state, SglError):
            raise self._state
        return self._state


class ModuloGrammars:
    """Compiles ``period/length``, ``period/length/num_forced/delay``, or refuses ``!delay``.

    Args:
        deferral: how often, of all times, there is no time for a mask.
    """

    def __init__(self, vocab_size: int, deferral: float = 0.0, seed: int = 0) -> None:
        self._vocab_size, self.deferral, self._rng = vocab_size, deferral, random.Random(seed)
        self.is_closed = False

    def compile(self, grammar: Grammar, end_ids: frozenset[int] = frozenset()) -> ModuloTicket:
        if grammar.source.startswith("!"):
            return ModuloTicket(SglError("This is no grammar.", param="regex"), int(grammar.source[1:]))
        period, length, num_forced, delay = [*map(int, grammar.source.split("/")), 0, 0][:4]
        return ModuloTicket(ModuloGrammar(period, length, self._vocab_size, num_forced), delay)

    def settle(self, states: Sequence[ModuloGrammar], draws: HostDraws) -> int:
        for state, draw in zip(states, draws.draws, strict=True):
            draws.token_ids[draw] = state.settle(draws.token_ids[draw])
        return sum(draws.token_ids[draw] < 0 for draw in draws.draws)

    def advance(self, states: Sequence[ModuloGrammar], draws: HostDraws) -> None:
        raise AssertionError("no logits have been limited")

    def masks(self, states: Sequence[ModuloGrammar]) -> list[bytes | SglError | None]:
        return [None if self._rng.random() < self.deferral else state.mask() for state in states]

    def close(self) -> None:
        self.is_closed = True


def alone(model: SimModel, request: Request) -> tuple[list[int], FinishReason]:
    """What a request must answer, computed from the definition: no batch, no cache, no pages."""
    params = request.params
    if params.grammar is not None and params.grammar.source.startswith("!"):
        return [], FinishReason(
            kind="abort", message="This is no grammar.", status=400, code="invalid_value", param="regex"
        )
    source = params.grammar and Grammar("regex", "/".join(params.grammar.source.split("/")[:3]) + "/0")
    grammar = ModuloGrammars(model.vocab_size).compile(source).poll() if source else None
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
        if grammar is not None and grammar.accept(token_id) == OVER:
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
        grammar = None
        if rng.random() < 0.3:
            source = (
                f"{rng.randint(1, 5)}/{rng.randint(1, 30)}/{rng.choice([0, 0, 1, 2, 5, 9])}/{rng.choice([0, 0, 5])}"
            )
            grammar = Grammar("regex", source if rng.random() < 0.9 else "!3")
        params = SamplingParams(
            max_new_tokens=rng.choice([0, 1, 2, rng.randint(0, max_len - len(prompt))])
            if max_len - len(prompt) >= 2
            else 1,
            min_new_tokens=0 if grammar else rng.choice([0, 0, 3]),
            stop_token_ids=(rng.randrange(vocab_size),) if rng.random() < 0.3 else (),
            ignore_eos=rng.random() < 0.3,
            grammar=grammar,
        )
        wants = Wants(hidden=rng.random() < 0.1)
        requests.append(
            Request(
                rid=f"r{number}",
                token_ids=tuple(prompt),
                params=params,
                wants=wants,
                eos_ids=(0, 1),
                priority=rng.choice([0, 0, 0, 1]),
                cache_salt=rng.choice(["", "", "", "salt"]),
            )
        )
    return requests


class Starved:
    """An executor that runs out of memory now and then, in steps that can be made smaller.

    Args:
        least_tokens: steps of one request and no more tokens than these always fit.
    """

    def __init__(self, executor: SimExecutor, rng: random.Random, rate: float, least_tokens: int) -> None:
        self._executor, self._rng, self._rate, self._least_tokens = executor, rng, rate, least_tokens
        self.num_failures = 0

    def forward(self, plan: StepPlan) -> None:
        self._fail(plan)
        self._executor.forward(plan)
        self._fail(plan)

    def sample(self, plan: StepPlan, masks: Masks) -> SimResult:
        self._fail(plan)
        return self._executor.sample(plan, masks)

    def close(self) -> None:
        self._executor.close()

    def _fail(self, plan: StepPlan) -> None:
        if (len(plan.rows) > 1 or plan.num_tokens > self._least_tokens) and self._rng.random() < self._rate:
            self.num_failures += 1
            raise OutOfMemoryError("Too little memory for the budget's line 'activations'.")


def random_run(seed: int, starvation: float = 0.0) -> int:
    """Runs one random configuration over random requests and asserts everything that must always hold.

    Returns:
        how often memory did not suffice; with ``starvation`` that often per chance.
    """
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
        jump_forward=rng.random() < 0.8,
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
    starved = Starved(executor, random.Random(seed), starvation, page_size if split_prompts else max_len)
    scheduler = Scheduler(config, ModuloGrammars(model.vocab_size, rng.choice([0.0, 0.3]), seed))
    loop = EngineLoop(scheduler, starved, script, script, overlap=rng.randint(0, 1), clock=lambda: executor.clock.now_s)
    run_to_end(loop, script)
    for request in requests:
        tokens, finish = alone(model, request)
        got = script.finished[request.rid]
        if got.kind == "abort" and got != finish:
            assert request.rid in aborted, got
            assert script.tokens[request.rid] == tokens[: len(script.tokens[request.rid])]
        else:
            assert (script.tokens[request.rid], got) == (tokens, finish), f"seed {seed}, request {request.rid}"
    assert scheduler.num_used_pages == 0
    assert scheduler.flush_cache() and scheduler.cache.num_free == config.num_pages
    return starved.num_failures


def run_to_end(loop: EngineLoop, script: Script, max_steps: int = 20_000) -> None:
    """Steps the loop until everything is answered; asserts conservation every step and that it never stalls."""
    idle = 0
    while script.messages or loop.scheduler.has_work:
        loop.receive(0.0)
        idle = 0 if loop.step() or script.messages or loop.scheduler.only_compiles else idle + 1
        loop.scheduler.check()
        script.step += 1
        assert idle < 3, "the loop stalls with work left"
        assert script.step < max_steps, "a request starves"
