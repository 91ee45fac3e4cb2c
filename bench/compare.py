"""Two configurations in turns, A B B A, or two sets of results: ratios with intervals, and when there can be none."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from sgl.bench import provenance, series
from sgl.bench.bandwidth import BandwidthProbe, moved
from sgl.bench.constraint import described
from sgl.bench.data import Vocabulary
from sgl.bench.engines import Timing
from sgl.bench.intervals import Ratio, paired_ratio, unpaired_ratio
from sgl.bench.load import Run
from sgl.bench.peers.workloads import Prompts
from sgl.bench.results import Result, is_time, of
from sgl.bench.series import Plan
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.types import Grammar

if TYPE_CHECKING:
    from sgl.bench.serving import Server

SIDES = ("A", "B")
SAID = ("base_url", "model", "cache_state", "failed", "first_error", "bandwidth_moved", "total_output_tokens")
"""What a comparison keeps of a run beside its figures."""


@dataclass(frozen=True)
class Batch:
    """``size`` prompts of ``input_len`` tokens, answered with ``output_len`` each."""

    size: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        return f"batch {self.size}, {self.input_len} in, {self.output_len} out"


class Side(Protocol):
    """One of the two engines."""

    def run(self, prompts: Sequence[Sequence[int]], output_len: int) -> Timing: ...


@dataclass(frozen=True)
class Line:
    """One figure of both.

    Args:
        a, b: medians.
        repeats: of the one with fewer.
    """

    work: str
    figure: str
    a: float
    b: float
    ratio: Ratio
    repeats: int

    @property
    def verdict(self) -> str:
        """Which one is better; empty where the interval has 1 in it, or too few repeats stand behind it."""
        if not self.ratio.is_certain:
            return ""
        return SIDES[(self.ratio.value > 1) == is_time(self.figure)]


def turns(repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, side): A B, B A, A B, ... so that a machine that slows down slows both down."""
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            yield repeat, side


def measure(
    sides: Mapping[str, Side],
    batches: Sequence[Batch],
    repeats: int,
    vocab_size: int,
    seed: int = 1,
    note: Callable[[str], None] = lambda _: None,
    grammars: Mapping[str, Grammar | None] = MappingProxyType({}),
) -> Iterator[dict[str, Any]]:
    """Runs every batch ``repeats`` times on both, on the same prompts, which were never used before.

    Args:
        grammars: that the answers of a side are kept to.
    """
    probe, prompts = BandwidthProbe(), Prompts(vocab_size, seed << 32)
    for batch in batches:
        warm = [prompts.draw(batch.input_len) for _ in range(batch.size)]
        for name, side in sides.items():
            note(f"{name}: warm-up of {batch.name}")
            side.run(warm, min(batch.output_len, 4))
        asked = [[prompts.draw(batch.input_len) for _ in range(batch.size)] for _ in range(repeats)]
        for repeat, name in turns(repeats):
            note(f"{name}: {batch.name}, {repeat + 1} of {repeats}")
            before = probe.measure()
            timing = sides[name].run(asked[repeat], batch.output_len)
            after = probe.measure()
            yield {
                "kind": "compare",
                "engine": name,
                "workload": batch.name,
                "repeat": repeat,
                "figures": figures_of(batch, timing),
                "cache_state": "cold",
                "dataset_hash": provenance.name_of(asked[repeat]),
                "bandwidth_before": before,
                "bandwidth_after": after,
                "bandwidth_moved": moved(before, after),
                "total_output_tokens": batch.size * batch.output_len,
                **described(grammars.get(name)),
            }


def measure_servers(servers: Mapping[str, Server], plan: Plan, note: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Sends the same requests to both in turns: the repeats of a plan, each with prompts of its own seed.

    Raises:
        ContaminatedError: a run measured something else than was meant.
        SglError: a warm-up failed, or a cache cannot be emptied.
    """
    vocabulary = Vocabulary.of(servers[SIDES[0]].tokenizer)
    for repeat, name in turns(plan.repeats):
        note(f"{name}: {repeat + 1} of {plan.repeats}")
        options = dataclasses.replace(plan.options, seed=plan.options.seed + repeat)
        once = dataclasses.replace(plan, options=options, repeats=1)
        for line in series.measure(servers[name], once, vocabulary, lambda _: Run()):
            head = {"kind": "serving", "dataset_name": line.data.name, "dataset_hash": line.data.hash}
            known = of({**head, **line.figures}, name)
            assert known is not None
            if line.run.interrupted:
                raise KeyboardInterrupt
            yield {
                "kind": "compare",
                "engine": name,
                "workload": known.work,
                "repeat": repeat,
                "figures": known.figures,
                "dataset_hash": line.data.hash,
                **{key: line.figures[key] for key in SAID if key in line.figures},
                **described(servers[name].target.grammar),
            }


def figures_of(batch: Batch, timing: Timing) -> dict[str, float]:
    """As one-batch names them; decoding only where there is any."""
    prefill_s, total_s = timing.prefilled_s - timing.start_s, timing.end_s - timing.start_s
    figures = {
        "prefill_latency": prefill_s,
        "prefill_throughput": batch.size * batch.input_len / prefill_s,
        "total_latency": total_s,
        "overall_throughput": batch.size * (batch.input_len + batch.output_len) / total_s,
    }
    gaps = [b - a for times in timing.tokens for a, b in itertools.pairwise(times)]
    if gaps:
        figures["median_decode_latency"] = statistics.median(gaps)
        figures["median_decode_throughput"] = timing.decode_tokens_per_s
    return {name: value for name, value in figures.items() if value > 0}


def compare(a: Sequence[Result], b: Sequence[Result], *, paired: bool, across_grammars: bool = False) -> list[Line]:
    """Every figure that both have, of every work that both did.

    Args:
        paired: whether the i-th results of both were measured back to back.
        across_grammars: whether what answers were kept to may differ, because that is the question.

    Raises:
        ConfigError: they did nothing alike, or not under the same conditions.
    """
    sides = _by_work(a, b)
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        works = [", ".join(sorted({key[1] for key in side})) for side in sides]
        raise ConfigError(f"A and B have no work in common: A has {works[0]}; B has {works[1]}.")
    for key in common:
        _check(key[1], sides[0][key], sides[1][key])
        _check_constraints(key[1], sides[0][key], sides[1][key], across_grammars)
    return [line for key in common for line in _lines(key[1], sides[0][key], sides[1][key], paired)]


def warnings(a: Sequence[Result], b: Sequence[Result]) -> list[str]:
    """What to know before believing a ratio."""
    everything = [*a, *b]
    said = []
    for what, values in {
        "machines": {result.machine for result in everything},
        "models": {result.model for result in everything},
    }.items():
        if len(values) > 1:
            said.append(f"A and B are of different {what}.")
    if any(result.cache_state == "any" for result in everything):
        said.append("What was cached is not known; --cache-state cold makes sure.")
    changed = sum(bool(result.raw.get("bandwidth_moved")) for result in everything)
    if changed:
        told = f"The memory bandwidth moved by more than 10% during {changed} of {len(everything)} runs"
        said.append(f"{told}: others use this machine.")
    return said


def _by_work(a: Sequence[Result], b: Sequence[Result]) -> list[dict[tuple[str, str, str], list[Result]]]:
    """Results by benchmark and work; by engine too where a side has several."""
    many = any(len({result.engine for result in side}) > 1 for side in (a, b))
    sides: list[dict[tuple[str, str, str], list[Result]]] = []
    for side in (a, b):
        found: dict[tuple[str, str, str], list[Result]] = {}
        for result in side:
            work = f"{result.work} ({result.engine})" if many else result.work
            found.setdefault((result.kind, work, result.engine if many else ""), []).append(result)
        sides.append(found)
    return sides


def _check(work: str, a: Sequence[Result], b: Sequence[Result]) -> None:
    """
    Raises:
        ConfigError: other prompts, another state of the cache, or a run that says nothing.
    """
    for name, side in zip(SIDES, (a, b), strict=True):
        spoiled = next((result.spoiled for result in side if result.spoiled), "")
        if spoiled:
            raise ConfigError(f"{work}: a run of {name} {spoiled}; it cannot be compared.")
    states = [sorted({result.cache_state or "not said" for result in side}) for side in (a, b)]
    if states[0] != states[1] or len(states[0]) > 1:
        told = " and ".join(f"{name}: {', '.join(state)}" for name, state in zip(SIDES, states, strict=True))
        raise ConfigError(f"{work}: the prefix caches were not in the same state ({told}); nothing is compared.")
    if {result.data for result in a} != {result.data for result in b}:
        raise ConfigError(f"{work}: A and B had different prompts (dataset_hash); nothing is compared.")


def _check_constraints(work: str, a: Sequence[Result], b: Sequence[Result], may_differ: bool) -> None:
    """
    Raises:
        ConfigError: answers were kept to different grammars, which was not the question or made them shorter.
    """
    kinds = [sorted({result.constraint or "nothing" for result in side}) for side in (a, b)]
    if kinds[0] == kinds[1] and len(kinds[0]) == 1:
        return
    if not may_differ or max(map(len, kinds)) > 1:
        told = " and ".join(f"{name}: {', '.join(kind)}" for name, kind in zip(SIDES, kinds, strict=True))
        raise ConfigError(
            f"{work}: answers were kept to different grammars ({told}); pass --across-grammars if that is the question."
        )
    written = [{result.num_written for result in side} for side in (a, b)]
    if written[0] != written[1]:
        told = " and ".join(f"{name}: {max(map(str, count))}" for name, count in zip(SIDES, written, strict=True))
        raise ConfigError(
            f"{work}: the answers have not the same number of tokens ({told}); nothing is compared across grammars."
        )


def _lines(work: str, a: Sequence[Result], b: Sequence[Result], paired: bool) -> Iterator[Line]:
    names = [name for name in a[0].figures if all(result.figures.get(name, 0) > 0 for result in (*a, *b))]
    for name in names:
        values = [[result.figures[name] for result in side] for side in (a, b)]
        ratio = (paired_ratio if paired else unpaired_ratio)(values[0], values[1])
        medians = [statistics.median(series) for series in values]
        yield Line(work, name, medians[0], medians[1], ratio, min(map(len, values)))


def split(raws: Sequence[Mapping[str, Any]]) -> tuple[list[Result], list[Result]]:
    """What `measure` gave, by side, in order of repeats; a repeat that only one side has is dropped."""
    ordered = sorted(raws, key=lambda raw: int(raw["repeat"]))
    sides = [[of(raw, side) for raw in ordered if raw["engine"] == side] for side in SIDES]
    seen = [{(r.work, r.raw["repeat"]) for r in side if r is not None} for side in sides]
    both = seen[0] & seen[1]
    kept = [[r for r in side if r is not None and (r.work, r.raw["repeat"]) in both] for side in sides]
    return kept[0], kept[1]
