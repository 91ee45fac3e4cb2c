"""The workloads W1 to W6 as data, their prompts, and the figures that follow from when tokens came; runs nothing."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sgl.engine.base.errors import ConfigError

MARGIN = 300
"""Ids at both ends of the vocabulary that no prompt has: bytes and special tokens live there."""

SHORTEST_STRETCH_S = 1.0
"""A stretch in which all requests decode says something about speed if it is longer than this."""

Prompt = Sequence[int]
Figures = dict[str, float]


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and when each of its events (in a process: its tokens) came.

    Times are seconds of one clock. ``num_tokens`` is as the engine counts them.
    """

    sent_s: float
    arrivals_s: Sequence[float]
    num_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.sent_s

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.arrivals_s[-1] - self.arrivals_s[0]


@dataclass(frozen=True)
class Round:
    """All requests of a workload once: what came, and the seconds from the first sent to the last over."""

    wall_s: float
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Workload:
    """What is asked.

    Args:
        prompt_len, output_len: tokens of each request; all prompts differ.
        requests: how many.
        concurrency: under way at once; 0 is all.
        prefix_len: tokens that all prompts of one repeat begin with, before ``prompt_len`` own ones.
        passes: how often the requests come with the same prefix, each time with new prompts after it.
        over_http: whether it is about a server; otherwise about an engine.
        figures: of the rounds of one repeat, one for each pass.
    """

    name: str
    prompt_len: int
    output_len: int
    figures: Callable[[Sequence[Round]], Figures]
    requests: int = 1
    concurrency: int = 0
    prefix_len: int = 0
    passes: int = 1
    over_http: bool = False

    @property
    def batch(self) -> int:
        """How many requests one decode step advances."""
        return self.concurrency or self.requests


def single(rounds: Sequence[Round]) -> Figures:
    """One request: decode speed after the first token, and the time to it."""
    (answer,) = rounds[0].answers
    return {"decode_tok_s": (answer.num_tokens - 1) / answer.decode_s, "ttft_s": answer.ttft_s}


def prefill(prompt_len: int) -> Callable[[Sequence[Round]], Figures]:
    def figures(rounds: Sequence[Round]) -> Figures:
        (answer,) = rounds[0].answers
        return {"prefill_tok_s": prompt_len / answer.ttft_s, "ttft_s": answer.ttft_s}

    return figures


def long_context(prompt_len: int) -> Callable[[Sequence[Round]], Figures]:
    return lambda rounds: {**single(rounds), **prefill(prompt_len)(rounds)}


def batched(rounds: Sequence[Round]) -> Figures:
    """All tokens per second, prompts included, and events per second in the stretch in which all requests decode."""
    (whole,) = rounds
    figures = {"out_tok_s": sum(answer.num_tokens for answer in whole.answers) / whole.wall_s}
    begin_s = max(answer.arrivals_s[0] for answer in whole.answers)
    end_s = min(answer.arrivals_s[-1] for answer in whole.answers)
    if end_s - begin_s > SHORTEST_STRETCH_S:
        count = sum(begin_s < when_s <= end_s for answer in whole.answers for when_s in answer.arrivals_s)
        figures["decode_tok_s"] = count / (end_s - begin_s)
    return figures


def shared_prefix(rounds: Sequence[Round]) -> Figures:
    """With a prefix that was never seen, and with the same prefix again."""
    cold, warm = rounds
    return {"wall_cold_s": cold.wall_s, "wall_warm_s": warm.wall_s}


def stream(rounds: Sequence[Round]) -> Figures:
    """Requests and tokens per second; means over requests of the time to the first token and between tokens."""
    (whole,) = rounds
    answers, wall_s = whole.answers, whole.wall_s
    return {
        "req_s": len(answers) / wall_s,
        "out_tok_s": sum(answer.num_tokens for answer in answers) / wall_s,
        "ttft_s": statistics.fmean(answer.ttft_s for answer in answers),
        "itl_ms": 1e3 * statistics.fmean(answer.decode_s / (answer.num_tokens - 1) for answer in answers),
    }


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("W1", 128, 128, single),
        Workload("W2", 1024, 1, prefill(1024)),
        Workload("W3x8", 128, 128, batched, requests=8),
        Workload("W3x32", 128, 128, batched, requests=32),
        Workload("W4", 4096, 64, long_context(4096)),
        Workload("W5", 32, 32, shared_prefix, requests=16, prefix_len=1024, passes=2),
        Workload("W6", 128, 128, stream, requests=32, concurrency=8, over_http=True),
    )
}

LESS_IS_BETTER = frozenset({"ttft_s", "wall_cold_s", "wall_warm_s", "itl_ms"})


def choose(names: str) -> list[Workload]:
    """Workloads by their names, separated by commas; ``W3`` means all of W3.

    Raises:
        ConfigError: there is no such workload.
    """
    chosen = []
    for name in names.split(","):
        found = [workload for known, workload in WORKLOADS.items() if known == name or known.startswith(f"{name}x")]
        if not found:
            raise ConfigError(f"--workloads {name} is unknown; use {', '.join(WORKLOADS)}.", param="--workloads")
        chosen += found
    return chosen


class Prompts:
    """Prompts that were never used before: each has a seed of its own, counted up from the first.

    Args:
        vocab_size: of the model.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._ids = range(MARGIN, vocab_size - MARGIN) if vocab_size > 4 * MARGIN else range(vocab_size)
        self._seed = seed

    def draw(self, length: int) -> list[int]:
        self._seed += 1
        rng = random.Random(self._seed)
        return [rng.choice(self._ids) for _ in range(length)]

    def repeat_of(self, workload: Workload) -> list[list[list[int]]]:
        """The prompts of each pass of one repeat."""
        prefix = self.draw(workload.prefix_len)
        return [
            [prefix + self.draw(workload.prompt_len) for _ in range(workload.requests)] for _ in range(workload.passes)
        ]
