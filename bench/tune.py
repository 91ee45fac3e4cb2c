"""Searches the values of options with which a model runs fastest on this machine; keeps only what is sure to help.

One option after another is changed from the best setting so far. Best and challenger run in turns, each in a process of
its own, on the same fresh prompts; a challenger takes the best's place only if the 95% interval of the ratio of their
times lies above `MARGIN`.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sgl.bench.engines import BatchEngine, Prompts
from sgl.bench.intervals import Ratio
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import SglError
from sgl.engine.base.options import Value

MARGIN = 1.02
"""A change must make the model faster by more than this, or the default stays."""

ROUNDS = 2
"""How often all options are gone through; the second time only if the first changed something."""

HOPELESS = 3
"""After so many pairs a challenger that was never faster is given up; one that was is measured to the end."""

PAGE_SIZES = (32, 64, 128)

_TICK_S = 1e-6
"""What an answer takes at least: all its tokens may arrive in one piece."""

Setting = Mapping[str, Value]
"""By ``group.field``."""


@dataclass(frozen=True)
class Knob:
    """An option and the values that are tried beside the one it has."""

    key: str
    candidates: tuple[Value, ...]


@dataclass(frozen=True)
class Trial:
    """A change that was tried. ``speed`` is against the best setting of that moment; None if it could not run."""

    key: str
    value: Value
    speed: Ratio | None
    kept: bool
    reason: str = ""


@dataclass
class Tuning:
    """What a search has found so far: the changed options, and all that was tried."""

    changes: dict[str, Value] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    interrupted: bool = False

    @property
    def gain(self) -> float:
        """How many times as fast as at the start: the product of what was kept."""
        return math.prod(trial.speed.value for trial in self.trials if trial.kept and trial.speed)


class Runner(Protocol):
    """The model with one setting."""

    def measure(self, round_: int) -> float:
        """Seconds; the same round is the same work."""
        ...

    def close(self) -> None: ...


def search(
    knobs: Sequence[Knob],
    start: Callable[[Setting], Runner],
    pairs: int,
    note: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Changes one option at a time for as long as it helps. Ctrl-C ends it with the best so far.

    Args:
        knobs: what may be changed, in this order.
        start: brings the model up with a setting; the empty one is the defaults.
        pairs: how often best and challenger are measured against each other.
        note: told what is being tried.

    Raises:
        SglError: the model does not run with the defaults.
    """
    run = _Search(start, pairs, note)
    try:
        run.through(knobs)
    except KeyboardInterrupt:
        run.tuning.interrupted = True
    finally:
        run.best.close()
    return run.tuning


class _Search:
    """A search on its way: what was found, and the runner that is best."""

    def __init__(self, start: Callable[[Setting], Runner], pairs: int, note: Callable[[str], None]) -> None:
        self.tuning = Tuning()
        self._start, self._pairs, self._note = start, pairs, note
        self._rounds = itertools.count()
        note("the defaults")
        self.best = start({})

    def through(self, knobs: Sequence[Knob]) -> None:
        """All options, and again if that changed something: one may be worth more after another."""
        for _ in range(ROUNDS):
            before = self.tuning.changes
            for knob in knobs:
                for value in knob.candidates:
                    if self.tuning.changes.get(knob.key) != value:
                        self._try(knob.key, value)
            if self.tuning.changes == before:
                return

    def _try(self, key: str, value: Value) -> None:
        """Measures one change and keeps it if it is sure to help."""
        self._note(f"{key.partition('.')[2]} {value}")
        setting = {**self.tuning.changes, key: value}
        try:
            challenger = self._start(setting)
        except SglError as error:
            self.tuning.trials.append(Trial(key, value, None, False, error.message))
            return
        loser = challenger
        try:
            speed = self._compare(challenger)
            kept = speed.low > MARGIN
            self.tuning.trials.append(Trial(key, value, speed, kept))
            if kept:
                self.tuning.changes, self.best, loser = setting, challenger, self.best
        finally:
            loser.close()

    def _compare(self, challenger: Runner) -> Ratio:
        """How many times as fast as the best the challenger is, measured in turns: A B, B A, A B, ..."""
        times: tuple[list[float], list[float]] = [], []
        for pair in range(self._pairs):
            round_ = next(self._rounds)  # prompts that neither has seen
            turns = [(self.best, times[0]), (challenger, times[1])]
            for runner, seconds in turns if pair % 2 == 0 else reversed(turns):
                seconds.append(runner.measure(round_))
            if pair + 1 == HOPELESS and all(best <= new for best, new in zip(*times, strict=True)):
                break
        return median_ratio([best / new for best, new in zip(*times, strict=True)])


def median_ratio(ratios: Sequence[float]) -> Ratio:
    """The median with its 95% interval by order statistics, which holds whatever the noise is like.

    With 6 to 8 ratios these are the least and the greatest; with fewer they are too, but say less than 95%.
    """
    ordered, n = sorted(ratios), len(ratios)
    # The k-th from either end encloses the median unless fewer than k of n coins fall on one side.
    outside = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))
    k = sum(1 for tail in outside if 2 * tail <= 0.05)
    cut = max(k - 1, 0)
    return Ratio(statistics.median(ordered), ordered[cut], ordered[-1 - cut])


@dataclass(frozen=True)
class Load:
    """What is measured: one request, and a batch whose prompts take several chunks."""

    batch_size: int
    input_len: int
    output_len: int

    @staticmethod
    def for_model(config: EngineConfig) -> Load:
        """For the defaults of a resolved configuration; no longer than the model's context."""
        chunk, context = config.schedule.chunked_prefill_size or 0, config.model.context_length or 0
        output_len = max(2, min(32, context // 4))
        return Load(8, max(1, min(max(256, chunk // 2), context - output_len - 1)), output_len)

    @property
    def max_tokens(self) -> int:
        """That the KV cache must hold at once, whatever the page size."""
        return self.batch_size * (self.input_len + self.output_len + 2 * max(PAGE_SIZES))


class EngineRunner:
    """An engine under a load."""

    def __init__(self, engine: BatchEngine, load: Load, vocab_size: int) -> None:
        self._engine, self._load, self._vocab_size = engine, load, vocab_size
        self.measure(-1)  # warms up

    def measure(self, round_: int) -> float:
        """The geometric mean of the seconds for prompts and for answers, of one request and of a batch."""
        rng, figures = random.Random(round_), []
        for size in (1, self._load.batch_size):
            prompts: Prompts = [self._prompt(rng) for _ in range(size)]
            timing = self._engine.run(prompts, self._load.output_len)
            figures += [timing.prefilled_s - timing.start_s, max(timing.end_s - timing.prefilled_s, _TICK_S)]
        return math.exp(sum(map(math.log, figures)) / len(figures))

    def _prompt(self, rng: random.Random) -> list[int]:
        return [rng.randrange(self._vocab_size) for _ in range(self._load.input_len)]

    def close(self) -> None:
        self._engine.close()


def knobs_for(config: EngineConfig, hardware_threads: int) -> list[Knob]:
    """What is tried around the defaults. An option that somebody gave keeps its value.

    A chunk is at most doubled: decoding requests wait for it, which these measurements do not see.
    """
    threads, chunk = config.kernel.cpu_threads or 1, config.schedule.chunked_prefill_size or -1
    found: dict[str, list[Value]] = {
        "kernel.cpu_threads": [hardware_threads, threads - 1, threads // 2],
        "kernel.cpu_pin": [True],
        "schedule.chunked_prefill_size": [chunk // 2, chunk * 3 // 2, chunk * 2],
        "cache.page_size": list(PAGE_SIZES),
    }
    free = {key for key in found if config.provenance[key].source in ("default", "resolved")}
    if config.model.device != "cpu":
        free -= {"kernel.cpu_threads", "kernel.cpu_pin"}
    return [Knob(key, _distinct(found[key], config.get(key))) for key in found if key in free]


def _distinct(candidates: Sequence[Value], present: Value) -> tuple[Value, ...]:
    return tuple(
        value for value in dict.fromkeys(candidates) if value != present and isinstance(value, int) and value > 0
    )
