"""One quantization from the checkpoint to the published directory: round, measure, keep or leave nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from sgl.engine.base import hub
from sgl.engine.base.errors import SglError
from sgl.quant.gate import criteria as limits
from sgl.quant.gate import documents
from sgl.quant.gate.criteria import Criterion, Verdict
from sgl.quant.gate.data import Data, DataOptions, Sequences
from sgl.quant.gate.documents import Evidence, GateFacts
from sgl.quant.recipes.calibrated import calibrate_all, check_installed
from sgl.quant.recipes.methods import RecipeFor
from sgl.quant.recipes.plan import Plan, check_any, layer_of, make_plan
from sgl.quant.recipes.report import LayerError, Memory, ModuleError, Watcher, summarize
from sgl.quant.recipes.rounding import round_all
from sgl.quant.recipes.source import Source
from sgl.quant.writer import SHARD_BYTES, Writer, check_free

if TYPE_CHECKING:
    from sgl.quant.gate.measure import Measured

FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", *hub.WEIGHT_FILES)
KV_OPTIONS = {"kv_cache_dtype": "fp8_e4m3"}


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Args:
        model: directory or Hub id.
        out: where the checkpoint will stand.
        criteria: of the gate; none publishes whatever comes out.
        engine: the server's options that the gate measures with.
    """

    model: str
    out: Path
    recipe_for: RecipeFor
    data: DataOptions = field(default_factory=DataOptions)
    criteria: Sequence[Criterion] = ()
    restart: bool = False
    shard_bytes: int = SHARD_BYTES
    engine: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Args:
        before, after: bytes of the tensors.
        base_bytes, peak_bytes: memory of the process when rounding began, and the most during it.
        bound_bytes: the two largest layers and the embedding, in the original; 0 where more than these is needed.
        verdicts: of the gate; empty without one.
    """

    out: Path
    layers: Sequence[LayerError]
    before: int
    after: int
    base_bytes: int
    peak_bytes: int
    bound_bytes: int
    verdicts: Sequence[Verdict]
    measured: Measured | None = None

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


def run(job: Job, watcher: Watcher) -> Outcome:
    """Quantizes, and publishes if the gate lets it pass.

    Raises:
        SglError: it cannot be done; then nothing is left behind.
        KeyboardInterrupt: what is complete is kept for the next run.
    """
    check_free(job.out)
    job.data.check()
    source = locate(job)
    plan = make_plan(source, job.recipe_for(source))
    check_any(plan)
    if plan.recipe.is_calibrated:
        check_installed()
    data = Data(job.data, source.folder) if plan.recipe.is_calibrated or job.criteria else None
    calibration = data.calibration() if data is not None and plan.recipe.is_calibrated else None
    held_out = data.held_out() if data is not None and job.criteria else None
    return produce(job, plan, calibration, held_out, watcher)


def locate(job: Job) -> Source:
    """The original, fetched if it is on the Hub."""
    folder = hub.demo_model() if not job.model else hub.locate(job.model, FILES, job.revision)
    return Source(folder)


def produce(
    job: Job, plan: Plan, calibration: Sequences | None, held_out: Sequences | None, watcher: Watcher
) -> Outcome:
    """`run`, with the plan and the data at hand."""
    memory = Memory()
    name = plan.run("" if calibration is None else calibration.hash)
    writer = Writer(job.out, plan.tensors, name, restart=job.restart, shard_bytes=job.shard_bytes)
    with nothing_left(writer):
        if calibration is None:
            round_all(plan, writer, watcher)
        else:
            calibrate_all(plan, calibration.ids, writer, watcher)
        outcome = outcome_of(job, plan, writer, memory)
        evidence = evidence_of(plan, outcome, calibration)
        return conclude(job, plan, writer, outcome, evidence, held_out, watcher)


def conclude(
    job: Job,
    plan: Plan,
    writer: Writer,
    outcome: Outcome,
    evidence: Evidence,
    held_out: Sequences | None,
    watcher: Watcher,
    looks: int = 1,
) -> Outcome:
    """The gate, and what follows from it; ``looks`` counts the candidates that were held against the text."""
    if held_out is not None:
        from sgl.quant.gate.measure import Bench, fitting  # with the engine behind it

        held_out = replace(held_out, ids=fitting(held_out.ids, plan.source.config, writer.folder))
        options: Mapping[str, Any] = KV_OPTIONS if plan.recipe.kv else {}
        with candidate(writer, plan, evidence) as (folder, room):
            bench = Bench(plan.source.folder, held_out.ids, room, job.engine, watcher)
            measured = bench.measure(folder, job.criteria, **options)
        outcome = judged(outcome, job.criteria, measured)
        evidence = with_gate(evidence, outcome, held_out, looks)
    if not outcome.passed:
        writer.remove()
        return outcome
    writer.publish(documents.all_of(plan, evidence))
    return outcome


def judged(outcome: Outcome, criteria: Sequence[Criterion], measured: Measured) -> Outcome:
    return replace(outcome, measured=measured, verdicts=limits.judge(criteria, measured.estimates))


def with_gate(evidence: Evidence, outcome: Outcome, held_out: Sequences, looks: int) -> Evidence:
    assert outcome.measured is not None
    measured = outcome.measured
    verdicts = documents.facts_of(outcome.verdicts)
    gate = GateFacts(held_out.facts, verdicts, dict(measured.divergence), dict(measured.tasks), looks)
    return structs.replace(evidence, gate=gate)


@contextlib.contextmanager
def candidate(writer: Writer, plan: Plan, evidence: Evidence) -> Iterator[tuple[Path, Path]]:
    """A folder that the engine can load, of what is written so far, and room for a recording; both vanish."""
    room = writer.folder / "gate"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    try:
        writer.save()
        writer.view(room / "candidate", documents.all_of(plan, evidence))
        yield room / "candidate", room / "recording"
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def nothing_left(writer: Writer) -> Iterator[None]:
    """An error removes what was written; Ctrl-C and bugs of ours do not."""
    try:
        yield
    except SglError:
        writer.remove()
        raise
    finally:
        writer.close()


def outcome_of(job: Job, plan: Plan, writer: Writer, memory: Memory) -> Outcome:
    errors = [ModuleError(**error) for unit in writer.units.values() for error in unit.get("errors", ())]
    layers = summarize(errors, {error.module: layer_of(error.module) for error in errors})
    return Outcome(
        out=job.out,
        layers=layers,
        before=plan.source.nbytes,
        after=sum(planned.nbytes for planned in plan.tensors.values()),
        base_bytes=memory.base_bytes,
        peak_bytes=memory.peak_bytes,
        bound_bytes=0 if plan.recipe.is_calibrated else two_layers(plan.source),
        verdicts=(),
    )


def two_layers(source: Source) -> int:
    """Bytes of the two largest numbered layers and of the largest tensor outside them, the embedding."""
    layers: dict[str, int] = {}
    outside = 0
    for name, entry in source.entries.items():
        layer = layer_of(name)
        if layer:
            layers[layer] = layers.get(layer, 0) + entry.nbytes
        else:
            outside = max(outside, entry.nbytes)
    return sum(sorted(layers.values())[-2:]) + outside


def evidence_of(plan: Plan, outcome: Outcome, calibration: Sequences | None) -> Evidence:
    return Evidence(
        format=1,
        time=documents.now(),
        versions=documents.versions(),
        recipe=plan.recipe.describe(),
        source={"name": plan.source.folder.resolve().name, "identity": plan.source.identity()},
        calibration=None if calibration is None else calibration.facts,
        size_bytes={"before": outcome.before, "after": outcome.after},
        memory_bytes={"base": outcome.base_bytes, "peak": outcome.peak_bytes, "two_layers": outcome.bound_bytes},
        layers=list(outcome.layers),
    )
