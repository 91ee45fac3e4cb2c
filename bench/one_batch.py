"""One batch at a time: prefill and decode speed of one or more engines on the same prompts, run in turns.

Every repeat has prompts that were never used before, so no prefix is cached. The machine's memory bandwidth is probed
before and after each run, and each phase is held against its floor at that bandwidth.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgl.bench import limits
from sgl.bench.bandwidth import BandwidthProbe, moved
from sgl.bench.contamination import Clocks, ContaminatedError
from sgl.bench.data import Sample, num_shared
from sgl.bench.engines import BatchEngine, Timing
from sgl.bench.limits import Row, Share, Yardstick
from sgl.bench.provenance import Data

PHASES = ("decode", "prefill")


@dataclass(frozen=True)
class Workload:
    """``batch_size`` prompts of ``input_len`` tokens, answered with ``output_len`` each."""

    batch_size: int
    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.input_len} in, {self.output_len} out"


@dataclass(frozen=True)
class Run:
    """One measured batch.

    Args:
        figures: names as in SGLang's bench_one_batch, seconds and tokens per second.
        shares: of the limit, by phase; a batch of one-token answers does not decode.
        data: the prompts.
        repeat: its number, from 1.
    """

    engine: str
    workload: Workload
    figures: dict[str, float]
    bandwidths: tuple[float, float]
    shares: tuple[Share, ...]
    data: Data
    repeat: int = 1

    @property
    def bandwidth_moved(self) -> bool:
        """Whether the machine changed under the measurement."""
        return moved(*self.bandwidths)

    @property
    def measured(self) -> dict[str, Any]:
        """All that is not the same in every repeat."""
        before, after = self.bandwidths
        shares: dict[str, Any] = {}
        for share in self.shares:
            shares |= share.to_dict()
        return {**self.figures, **shares, "bandwidth_before": before, "bandwidth_after": after}

    def to_dict(self) -> dict[str, Any]:
        batch = self.workload
        return {
            "run_name": f"{self.engine}-b{batch.batch_size}-i{batch.input_len}-o{batch.output_len}",
            "engine": self.engine,
            **asdict(batch),
            **self.measured,
            "bandwidth_moved": self.bandwidth_moved,
            "repeat": self.repeat,
        }


def measure(
    engines: Sequence[BatchEngine],
    workloads: Sequence[Workload],
    repeats: int,
    vocab_size: int,
    yardstick: Yardstick,
    seed: int = 1,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Run]:
    """Runs every workload ``repeats`` times on every engine, in alternating order, after one warm-up each.

    Args:
        yardstick: of the model as the first engine has it; all are held against it.

    Raises:
        ContaminatedError: a clock jumped, or prompts were found in a cache.
    """
    probe = BandwidthProbe()
    rng = random.Random(seed)
    asked: list[Sample] = []
    for workload in workloads:
        for engine in engines:
            note(f"{engine.name}: warm-up of {workload}")
            warm = _prompts(rng, workload, vocab_size)
            asked += _samples(warm, workload)
            engine.run(warm, min(workload.output_len, 4))
        for repeat in range(repeats):
            prompts = _prompts(rng, workload, vocab_size)
            asked += _samples(prompts, workload)
            for engine in engines if repeat % 2 == 0 else reversed(engines):
                note(f"{engine.name}: {workload}, {repeat + 1} of {repeats}")
                before, clocks = probe.measure(), Clocks.now()
                timing = engine.run(prompts, workload.output_len)
                clocks.check(Clocks.now())
                bandwidths = before, probe.measure()
                _check_cold(engine.name, timing, asked)
                data = Data.of("random", _samples(prompts, workload))
                figures = _figures(workload, timing, sum(bandwidths) / 2, yardstick)
                shares = _shares(workload, figures, yardstick, sum(bandwidths) / 2)
                yield Run(engine.name, workload, figures, bandwidths, shares, data, repeat + 1)


def _prompts(rng: random.Random, workload: Workload, vocab_size: int) -> list[list[int]]:
    return [[rng.randrange(vocab_size) for _ in range(workload.input_len)] for _ in range(workload.batch_size)]


def _samples(prompts: Sequence[Sequence[int]], workload: Workload) -> list[Sample]:
    return [Sample(tuple(ids), workload.output_len) for ids in prompts]


def _check_cold(name: str, timing: Timing, asked: Sequence[Sample]) -> None:
    """Drawn prompts begin alike by chance only."""
    if timing.cached and timing.cached > num_shared(asked):
        raise ContaminatedError(f"{name} had {timing.cached} tokens of new prompts in its cache; nothing is reported.")


def _figures(workload: Workload, timing: Timing, bandwidth: float, yardstick: Yardstick) -> dict[str, float]:
    batch, total = workload.batch_size, timing.end_s - timing.start_s
    prefill = timing.prefilled_s - timing.start_s
    decode = timing.decode_tokens_per_s
    gaps = [b - a for times in timing.tokens for a, b in itertools.pairwise(times)]
    steps = _decode_steps(workload, yardstick)
    step_bytes = statistics.fmean(work.size_bytes for work in steps) if steps else 0.0
    return {
        "prefill_latency": prefill,
        "prefill_throughput": batch * workload.input_len / prefill,
        "median_decode_latency": statistics.median(gaps) if gaps else 0.0,
        "median_decode_throughput": decode,
        "total_latency": total,
        "overall_throughput": batch * (workload.input_len + workload.output_len) / total,
        "decode_share_of_bandwidth": decode / batch * step_bytes / bandwidth,
    }


def _shares(
    workload: Workload, figures: Mapping[str, float], yardstick: Yardstick, bandwidth: float
) -> tuple[Share, ...]:
    """Of the floors of both phases, where they can be known."""
    if yardstick.missing:
        return ()
    ceiling, batch = yardstick.ceiling(bandwidth), workload.batch_size
    prompts = limits.prefill(yardstick.cost, [Row(0, workload.input_len)] * batch, yardstick.chunk)
    prefill = Share("prefill", limits.floor(prompts, ceiling), figures["prefill_latency"])
    decode = figures["median_decode_throughput"]
    if not decode:
        return (prefill,)
    steps = _decode_steps(workload, yardstick)
    return Share("decode", limits.floor(steps, ceiling), len(steps) * batch / decode), prefill


def _decode_steps(workload: Workload, yardstick: Yardstick) -> list[limits.Work]:
    """The first token of an answer is the last of the prefill."""
    return limits.decode(yardstick.cost, [workload.input_len] * workload.batch_size, workload.output_len - 1)
