"""One batch at a time: prefill and decode speed of one or more engines on the same prompts, run in turns.

Every repeat has prompts that were never used before, so no prefix is cached. The machine's memory bandwidth is probed
before and after each run; decoding is reported as a share of it.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from sgl.bench.bandwidth import BandwidthProbe
from sgl.bench.engines import BatchEngine, Timing

DRIFT = 0.15
"""A run during which the bandwidth moved by more than this says so."""


@dataclass(frozen=True)
class Workload:
    """``batch_size`` prompts of ``input_len`` tokens, answered with ``output_len`` each."""

    batch_size: int
    input_len: int
    output_len: int


@dataclass(frozen=True)
class ModelCost:
    """What a decode step must read."""

    weight_bytes: int
    kv_bytes_per_token: int

    def step_bytes(self, workload: Workload) -> float:
        """Weights, and on average half of the answers' keys and values beside those of the prompts."""
        tokens = workload.batch_size * (workload.input_len + workload.output_len / 2)
        return self.weight_bytes + tokens * self.kv_bytes_per_token


@dataclass(frozen=True)
class Run:
    """One measured batch; names as in SGLang's bench_one_batch, seconds and tokens per second."""

    run_name: str
    engine: str
    batch_size: int
    input_len: int
    output_len: int
    prefill_latency: float
    prefill_throughput: float
    median_decode_latency: float
    median_decode_throughput: float
    total_latency: float
    overall_throughput: float
    bandwidth_before: float
    bandwidth_after: float
    decode_share_of_bandwidth: float

    @property
    def drifted(self) -> bool:
        """Whether the machine changed under the measurement."""
        low, high = sorted((self.bandwidth_before, self.bandwidth_after))
        return high > low * (1 + DRIFT)

    def to_dict(self) -> dict[str, str | int | float]:
        return asdict(self)


def measure(
    engines: Sequence[BatchEngine],
    workloads: Sequence[Workload],
    repeats: int,
    vocab_size: int,
    cost: ModelCost,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Run]:
    """Runs every workload ``repeats`` times on every engine, in alternating order, after one warm-up each."""
    probe = BandwidthProbe()
    rng = random.Random(seed)
    for workload in workloads:
        for engine in engines:
            note(f"{engine.name}: warm-up of {workload}")
            engine.run(_prompts(rng, workload, vocab_size), min(workload.output_len, 4))
        for repeat in range(repeats):
            prompts = _prompts(rng, workload, vocab_size)
            for engine in engines if repeat % 2 == 0 else reversed(engines):
                note(f"{engine.name}: {workload}, {repeat + 1} of {repeats}")
                before = probe.measure()
                timing = engine.run(prompts, workload.output_len)
                yield _summarize(engine.name, workload, timing, before, probe.measure(), cost)


def medians(runs: Sequence[Run], value: Callable[[Run], float]) -> tuple[float, float, float]:
    """(median, least, greatest) of a figure."""
    values = [value(run) for run in runs]
    return statistics.median(values), min(values), max(values)


def _prompts(rng: random.Random, workload: Workload, vocab_size: int) -> list[list[int]]:
    return [[rng.randrange(vocab_size) for _ in range(workload.input_len)] for _ in range(workload.batch_size)]


def _summarize(name: str, workload: Workload, timing: Timing, before: float, after: float, cost: ModelCost) -> Run:
    batch, total = workload.batch_size, timing.end_s - timing.start_s
    prefill = timing.prefilled_s - timing.start_s
    decode = timing.decode_tokens_per_s
    num_tokens = batch * (workload.input_len + workload.output_len)
    gaps = [b - a for times in timing.tokens for a, b in itertools.pairwise(times)]
    bandwidth = (before + after) / 2
    return Run(
        run_name=f"{name}-b{batch}-i{workload.input_len}-o{workload.output_len}",
        engine=name,
        batch_size=batch,
        input_len=workload.input_len,
        output_len=workload.output_len,
        prefill_latency=prefill,
        prefill_throughput=batch * workload.input_len / prefill,
        median_decode_latency=statistics.median(gaps) if gaps else 0.0,
        median_decode_throughput=decode,
        total_latency=total,
        overall_throughput=num_tokens / total,
        bandwidth_before=before,
        bandwidth_after=after,
        decode_share_of_bandwidth=decode / batch * cost.step_bytes(workload) / bandwidth,
    )
