"""A benchmark several times: repeats, and a sweep over kinds of traffic; knows neither servers nor screens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sgl.bench import limits
from sgl.bench.bandwidth import BandwidthProbe, moved
from sgl.bench.contamination import check_state
from sgl.bench.data import FILES, DataOptions, Sample, Vocabulary, load, num_requests, warm_up
from sgl.bench.figures import medians
from sgl.bench.load import Run, Traffic, follows_trace, run_until_interrupt
from sgl.bench.provenance import Data
from sgl.engine.base.errors import ConfigError


class Bench(Protocol):
    """What is measured: an engine or a server."""

    @property
    def is_local(self) -> bool:
        """Whether it computes on this machine."""
        ...

    def measure(
        self, run: Run, samples: Sequence[Sample], traffic: Traffic, warm_up: Sequence[Sample], *, flush: bool
    ) -> Coroutine[None, None, None]: ...

    def verify(self, run: Run, samples: Sequence[Sample], cache_state: str) -> list[str]: ...

    def result(self, run: Run, traffic: Traffic, slo: dict[str, float], *, flush: bool) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        traffics: one series of repeats for each of them.
        warmup_requests: before every run, not measured.
        cache_state: that every run begins with.
        slo: bounds in milliseconds by metric.
        yardstick: of the model that is measured, where it is known.
    """

    options: DataOptions
    traffics: Sequence[Traffic] = (Traffic(),)
    repeats: int = 1
    warmup_requests: int = 1
    cache_state: str = "any"
    slo: dict[str, float] = field(default_factory=dict)
    yardstick: limits.Yardstick | None = None

    @property
    def num_runs(self) -> int:
        return self.repeats * len(self.traffics)

    def check(self) -> None:
        """
        Raises:
            ConfigError: it names the flag.
        """
        check_state(self.cache_state)
        for traffic in self.traffics:
            traffic.check()
        if self.repeats < 1:
            raise ConfigError(f"--repeats must be at least 1, got {self.repeats}.", param="--repeats")
        if self.num_runs > 1 and self.options.dataset_name in FILES and self.cache_state == "any":
            message = (
                f"{self.num_runs} runs over the same {self.options.dataset_name} file: the first one would fill the "
            )
            raise ConfigError(f"{message}prefix cache; pass --cache-state cold or warm.", param="--cache-state")
        self.options.check()

    def against(self, yardstick: limits.Yardstick | None) -> Plan:
        """The same runs, held against a limit."""
        return replace(self, yardstick=yardstick)

    def samples(self, point: int, repeat: int, vocabulary: Vocabulary) -> list[Sample]:
        """Prompts of a run. Made ones are new in every repeat; in every run, if the cache is not looked after."""
        number = point * self.repeats + repeat if self.cache_state == "any" else repeat
        seed = self.options.seed if self.options.dataset_name in FILES else self.options.seed + number
        return load(replace(self.options, seed=seed), vocabulary)


@dataclass
class Line:
    """One run.

    Args:
        figures: what was measured.
        data: what was asked.
        repeat: its number, from 1.
        notes: what could not be made sure of.
        run: the requests.
        summary: medians and intervals, with the last repeat of several.
    """

    figures: dict[str, Any]
    data: Data
    repeat: int
    notes: list[str]
    run: Run
    traffic: Traffic
    share: limits.Share | None = None
    summary: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        summary = {} if self.summary is None else {"summary": self.summary}
        return {**self.figures, "repeat": self.repeat, "notes": self.notes, **summary}


def measure(bench: Bench, plan: Plan, vocabulary: Vocabulary, new_run: Callable[[int], Run]) -> Iterator[Line]:
    """Runs everything in turn; Ctrl-C ends it with what the run under way has measured.

    Args:
        new_run: makes what takes the outcomes of a run; told how many requests all runs have together.

    Raises:
        ContaminatedError: a run measured something else than was meant; the lines before it stand.
        SglError: a warm-up failed, or the data cannot be had.
    """
    probe = BandwidthProbe() if bench.is_local else None
    for point, traffic in enumerate(plan.traffics):
        lines: list[Line] = []
        for repeat in range(plan.repeats):
            samples = plan.samples(point, repeat, vocabulary)
            run = new_run(plan.num_runs * num_requests(samples))
            line = _one(bench, plan, traffic, samples, vocabulary, run, probe)
            line.repeat = repeat + 1
            lines.append(line)
            if len(lines) > 1 and (len(lines) == plan.repeats or run.interrupted):
                line.summary = medians([one.figures for one in lines])
            yield line
            if run.interrupted:
                return


def _one(
    bench: Bench,
    plan: Plan,
    traffic: Traffic,
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    run: Run,
    probe: BandwidthProbe | None,
) -> Line:
    flush, warm = plan.cache_state == "cold", warm_up(samples, plan.warmup_requests, vocabulary)
    if plan.cache_state == "warm":
        warm += [replace(sample, output_len=1, later=(), due_s=None) for sample in samples]
    before = probe.measure() if probe else 0.0
    run_until_interrupt(run, bench.measure(run, samples, traffic, warm, flush=flush))
    notes = bench.verify(run, samples, plan.cache_state)
    figures = {**bench.result(run, traffic, plan.slo, flush=flush), "cache_state": plan.cache_state}
    if follows_trace(samples, traffic):
        figures |= {"request_rate": "trace", "arrival": "trace", "trace_speed": traffic.trace_speed}
    share = None
    if probe:
        after = probe.measure()
        figures |= {"bandwidth_before": before, "bandwidth_after": after, "bandwidth_moved": moved(before, after)}
        share = _share(plan.yardstick, run, (before + after) / 2)
        if share is not None and plan.yardstick is not None:
            figures |= {**share.to_dict(), "peaks": dict(plan.yardstick.rates)}
    data = Data.of(plan.options.dataset_name, samples, plan.options.dataset_path)
    return Line(figures, data, 1, notes, run, traffic, share)


def _share(yardstick: limits.Yardstick | None, run: Run, bandwidth: float) -> limits.Share | None:
    if yardstick is None or yardstick.missing or not any(not outcome.error for outcome in run.outcomes):
        return None
    return limits.of_run(yardstick.cost, run.outcomes, yardstick.chunk, yardstick.ceiling(bandwidth))
