"""Proves that an answer does not depend on what the engine did meanwhile, or finds the first that does; prints nothing.

Every prompt is answered alone by an engine that has done nothing else. Then all are answered again under random
schedules: in company, in other chunks, from cached prefixes, preempted, beside requests that are aborted. Tokens and
their logprobs must be the same to the last bit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.api.receipt import Maker
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams

POLICIES = ("lpm", "fcfs", "dfs-weight", "random")
_STEMS = 3
_TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True)
class Prompt:
    """What is asked, over and over."""

    token_ids: tuple[int, ...]
    output_len: int
    temperature: float
    seed: int

    def request(self) -> GenerateRequest:
        params = SamplingParams(max_new_tokens=self.output_len, temperature=self.temperature, ignore_eos=True)
        return GenerateRequest(
            input_ids=self.token_ids, sampling=params, seed=self.seed, stream=True, return_logprob=True
        )


@dataclass(frozen=True)
class Answer:
    """What came of a prompt."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int = 0

    def first_difference(self, other: Answer) -> int | None:
        """Where two answers part; None if they are the same to the last bit."""
        pairs = zip(self.token_ids, self.logprobs, other.token_ids, other.logprobs, strict=False)
        for position, (token, logprob, other_token, other_logprob) in enumerate(pairs):
            if token != other_token or logprob != other_logprob:
                return position
        shorter = min(len(self.token_ids), len(other.token_ids))
        return None if len(self.token_ids) == len(other.token_ids) else shorter


@dataclass(frozen=True)
class Schedule:
    """A way to run.

    Args:
        settings: of the operation ``reschedule``.
        asked: which prompts, in the order in which they come; some come twice.
        gaps: before each of them, the tokens that the ones before must have brought.
        aborted: which of them are ended early, by place in `asked`, and after how many tokens.
    """

    number: int
    settings: dict[str, Any]
    asked: tuple[int, ...]
    gaps: tuple[int, ...]
    aborted: dict[int, int]


@dataclass(frozen=True)
class Divergence:
    """The first answer that was another one than alone."""

    schedule: Schedule
    prompt: int
    position: int
    alone: tuple[int | None, float | None]
    then: tuple[int | None, float | None]


@dataclass
class Proof:
    """What was compared."""

    num_schedules: int = 0
    num_answers: int = 0
    num_tokens: int = 0
    num_preempted: int = 0
    num_cached_tokens: int = 0
    num_aborted: int = 0
    divergence: Divergence | None = None
    policies: dict[str, int] = field(default_factory=dict)


def draw_prompts(count: int, vocab_size: int, output_len: int, longest: int, seed: int) -> list[Prompt]:
    """Prompts of random tokens, some of which begin alike.

    Args:
        longest: prompt, in tokens.
    """
    rng = random.Random(seed)
    stems = [[rng.randrange(vocab_size) for _ in range(longest // 2)] for _ in range(_STEMS)]
    prompts = []
    for number in range(count):
        stem = rng.choice(stems)[: rng.choice([0, longest // 4, longest // 2])]
        own = [rng.randrange(vocab_size) for _ in range(rng.randint(1, longest // 2))]
        temperature = _TEMPERATURES[number % len(_TEMPERATURES)]
        prompts.append(Prompt((*stem, *own), output_len, temperature, rng.getrandbits(32)))
    return prompts


def draw_schedule(number: int, prompts: Sequence[Prompt], given: dict[str, Any], seed: int) -> Schedule:
    """The schedule of that number.

    Args:
        given: the engine's own settings.
    """
    rng = random.Random(seed << 32 | number)
    asked = [index for index in range(len(prompts)) for _ in range(rng.choice([1, 1, 2]))]
    rng.shuffle(asked)
    page = given["page_size"]
    needed = -(-max(len(prompt.token_ids) + prompt.output_len for prompt in prompts) // page)
    total = sum(-(-(len(prompts[index].token_ids) + prompts[index].output_len) // page) for index in asked)
    most = min(given["num_pages"], needed + total)
    chunk = rng.choice([1, page - 1, page, 3 * page + 1, given["max_step_tokens"]])
    settings = {
        "num_pages": rng.choice([most, min(rng.randint(needed, 2 * needed), most)]),
        "max_step_tokens": max(1, min(chunk, given["max_step_tokens"])),
        "policy": rng.choice(POLICIES),
        "prefix_caching": rng.random() < 0.8,
        "conservativeness": rng.choice([0.05, 1.0]),
        "overlap": rng.randint(0, 1),
        "seed": number,
    }
    gaps = tuple(rng.choice([0, 0, 1, 5]) for _ in asked)
    aborted = {place: rng.randint(1, 4) for place in range(len(asked)) if rng.random() < 0.1}
    return Schedule(number, settings, tuple(asked), gaps, aborted)


async def prove(
    engine: AsyncEngine, prompts: Sequence[Prompt], num_schedules: int, seed: int, note: Callable[[str], None]
) -> Proof:
    """Runs the schedules, up to the first in which an answer is another one.

    Args:
        note: told what is being done.
    """
    alone = []
    for number, prompt in enumerate(prompts):
        note(f"alone: prompt {number + 1} of {len(prompts)}")
        given = (await _reschedule(engine, overlap=0))["settings"]
        answer = await _answer(engine, prompt)
        assert answer is not None
        alone.append(answer)
    proof, before = Proof(), (await _reschedule(engine))["num_preempted"]
    try:
        for number in range(num_schedules):
            note(f"schedule {number + 1} of {num_schedules}")
            schedule = draw_schedule(number, prompts, given, seed)
            await _reschedule(engine, **schedule.settings)
            found = await _run(engine, prompts, schedule)
            _compare(proof, schedule, alone, found)
            proof.num_preempted = (await _reschedule(engine))["num_preempted"] - before
            if proof.divergence is not None:
                break
    finally:
        await _reschedule(engine)
    return proof


async def _reschedule(engine: AsyncEngine, **settings: Any) -> dict[str, Any]:
    """As soon as the engine has forgotten what was aborted."""
    while True:
        try:
            return await engine.call("reschedule", **settings)
        except SglError as error:
            if error.status != 409:
                raise
        await asyncio.sleep(0.001)


async def _run(engine: AsyncEngine, prompts: Sequence[Prompt], schedule: Schedule) -> list[Answer | None]:
    """The answers in the order in which they were asked; None for those that were aborted."""
    progress = _Progress()
    tasks = []
    for place, (index, gap) in enumerate(zip(schedule.asked, schedule.gaps, strict=True)):
        await progress.wait(gap)
        cut = schedule.aborted.get(place)
        tasks.append(asyncio.create_task(_answer(engine, prompts[index], progress, cut)))
        progress.running += 1
    return list(await asyncio.gather(*tasks))


class _Progress:
    """Tokens that have come, for those who wait for more."""

    def __init__(self) -> None:
        self.running = 0
        self._tokens = 0
        self._news = asyncio.Event()

    def add(self, num_tokens: int) -> None:
        self._tokens += num_tokens
        self._news.set()

    def end(self) -> None:
        self.running -= 1
        self._news.set()

    async def wait(self, num_tokens: int) -> None:
        """Until so many more have come, or none can."""
        until = self._tokens + num_tokens
        while self._tokens < until and self.running:
            self._news.clear()
            await self._news.wait()


async def _answer(
    engine: AsyncEngine, prompt: Prompt, progress: _Progress | None = None, cut: int | None = None
) -> Answer | None:
    """What the engine answers; None if it is told to stop after ``cut`` tokens."""
    tokens: list[int] = []
    logprobs: list[float] = []
    cached = 0
    try:
        async with aclosing(engine.generate(prompt.request())) as items:
            async for item in items:
                tokens += item.token_ids
                logprobs += [entry.logprob or 0.0 for entry in item.output_logprobs]
                cached = item.cached_tokens
                if progress is not None:
                    progress.add(len(item.token_ids))
                if cut is not None and len(tokens) >= cut:
                    return None
    finally:
        if progress is not None:
            progress.end()
    return Answer(tuple(tokens), tuple(logprobs), cached)


def _compare(proof: Proof, schedule: Schedule, alone: Sequence[Answer], found: Sequence[Answer | None]) -> None:
    proof.num_schedules += 1
    policy = schedule.settings["policy"]
    proof.policies[policy] = proof.policies.get(policy, 0) + 1
    for index, answer in zip(schedule.asked, found, strict=True):
        if answer is None:
            proof.num_aborted += 1
            continue
        proof.num_answers += 1
        proof.num_tokens += len(answer.token_ids)
        proof.num_cached_tokens += answer.cached_tokens
        position = alone[index].first_difference(answer)
        if position is not None and proof.divergence is None:
            proof.divergence = Divergence(schedule, index, position, _at(alone[index], position), _at(answer, position))


def _at(answer: Answer, position: int) -> tuple[int | None, float | None]:
    if position >= len(answer.token_ids):
        return None, None
    return answer.token_ids[position], answer.logprobs[position]


def read_prompts(lines: Iterator[str], engine: AsyncEngine, output_len: int, seed: int) -> list[Prompt]:
    """A prompt for every line of text that is not empty."""
    rng = random.Random(seed)
    texts = [line.rstrip("\n") for line in lines if line.strip()]
    return [
        Prompt(
            tuple(engine.tokenizer.encode(text)),
            output_len,
            _TEMPERATURES[number % len(_TEMPERATURES)],
            rng.getrandbits(32),
        )
        for number, text in enumerate(texts)
    ]


def certificate(proof: Proof, maker: Maker, prompts: Sequence[Prompt], seed: int) -> dict[str, Any]:
    """The proof with everything that it holds for."""
    return {
        "kind": "determinism",
        "identical": proof.divergence is None,
        "maker": msgspec.to_builtins(maker),
        "seed": seed,
        "prompts": [asdict(prompt) for prompt in prompts],
        **asdict(proof),
    }
