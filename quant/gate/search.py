"""--auto: which layers must stay wider, so that the smallest checkpoint passes the gate.

Every layer is made in both widths once; candidates are then put together from links. What is measured while searching
is text of the calibration, never the held-out text, which is looked at by finished candidates only, and by few.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.engine.base.errors import ConfigError
from sgl.quant.gate import documents
from sgl.quant.gate.criteria import Criterion, Verdict, judge
from sgl.quant.gate.data import Data, Sequences
from sgl.quant.gate.job import Job, Outcome, conclude, evidence_of, locate, nothing_left, outcome_of
from sgl.quant.gate.measure import Bench, fitting
from sgl.quant.recipes.calibrated import calibrate_all, check_installed
from sgl.quant.recipes.methods import WIDER
from sgl.quant.recipes.plan import Plan, Recipe, check_any, make_plan, siblings, to_json
from sgl.quant.recipes.report import Memory, ModuleError, Watcher
from sgl.quant.recipes.rounding import round_all
from sgl.quant.recipes.source import Tensors
from sgl.quant.writer import Writer, check_free

if TYPE_CHECKING:
    from sgl.quant.scheme import WritableScheme

LOOKS = 4
"""Finished candidates that may be held against the held-out text: each look is another chance to pass by luck."""

_ALGORITHMS = ("rtn", "gptq")
_MOST_CHOICES = 128
_SEARCH_SEED = 1  # of the items of tasks; the gate has others


@dataclass(frozen=True, slots=True)
class Choice:
    """Modules that get one width together, and what the wider one costs in bytes."""

    modules: tuple[str, ...]
    cost: int

    @property
    def file(self) -> str:
        return self.modules[0]


def search(job: Job, watcher: Watcher) -> Outcome:
    """Quantizes as `job.run` does, with as few layers wider as the gate allows.

    Raises:
        SglError: it cannot be done; then nothing is left behind.
        KeyboardInterrupt: what is complete is kept for the next run.
    """
    check_free(job.out)
    job.data.check()
    source = locate(job)
    recipe = job.recipe_for(source)
    if recipe.algorithm not in _ALGORITHMS or recipe.is_static or recipe.kv:
        names = " and ".join(_ALGORITHMS)
        raise ConfigError(
            f"--auto mixes layers of two runs, which only {names} without --static allow.", param="--auto"
        )
    if recipe.is_calibrated:
        check_installed()
    data = Data(job.data, source.folder)
    calibration, held_out = data.calibration(), data.held_out()
    memory = Memory()
    plan = make_plan(source, recipe)
    check_any(plan)
    parts = _Parts(job, plan, calibration, watcher)
    try:
        parts.make()
        ids = fitting(calibration.ids[: job.data.num_gate], source.config, parts.folder)
        bench = Bench(source.folder, ids, parts.folder / "recording", job.engine, watcher)
        order = _sensitivities(parts, bench, watcher)
        count, verdicts = _fewest(parts, order, bench, job.criteria)
        if count is None:
            return replace(_nothing(parts, job, memory), verdicts=verdicts)
        outcome = _publish(parts, order, count, job, calibration, held_out, memory, watcher)
    except KeyboardInterrupt:
        raise  # the parts are for the next run
    except BaseException:
        parts.remove()
        raise
    parts.remove()
    return outcome


class _Parts:
    """Every layer as it is, narrow and wide: three folders with a file for every choice."""

    def __init__(self, job: Job, plan: Plan, calibration: Sequences, watcher: Watcher) -> None:
        self.plan = plan
        self.folder = job.out.with_name(job.out.name + ".search")
        self.wide = WIDER[plan.recipe.method]
        self._job = job
        self._calibration = calibration
        self._watcher = watcher
        self.choices = _choices(plan, self.wide)
        self._file_of = {module: choice.file for choice in self.choices for module in choice.modules}
        self._plans = {"narrow": plan, "wide": self._with(self.wide), "original": self._with(None)}
        self.errors: dict[str, dict[str, ModuleError]] = {}

    def make(self) -> None:
        """Writes what is not there yet."""
        run = self.plan.run(self._calibration.hash)
        told = self.folder / "run.json"
        if self._job.restart:
            self.remove()
        if self.folder.is_dir() and (not told.is_file() or json.loads(told.read_text()) != run):
            raise ConfigError(
                f"{self.folder} was left by a search with other options or another model: add --restart to throw it "
                "away, or name another output.",
                param="--output",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        told.write_bytes(to_json(run))
        for name, plan in self._plans.items():
            self.errors[name] = self._part(name, plan, run)

    def _part(self, name: str, plan: Plan, run: str) -> dict[str, ModuleError]:
        folder, told = self.folder / name, self.folder / f"{name}.json"
        if not folder.is_dir():
            writer = Writer(folder, plan.tensors, f"{run}-{name}", file_of=self.file_of)
            with nothing_left(writer):
                if name == "original" or plan.recipe.algorithm == "rtn":
                    round_all(plan, writer, self._watcher)
                else:
                    calibrate_all(plan, self._calibration.ids, writer, self._watcher)
                errors = [error for unit in writer.units.values() for error in unit.get("errors", ())]
                told.write_bytes(to_json(errors))
                writer.publish({})
        return {error["module"]: ModuleError(**error) for error in json.loads(told.read_text())}

    def file_of(self, tensor: str) -> str:
        """The file of a tensor, in each of the folders."""
        return self._file_of.get(tensor.rpartition(".")[0], "rest")

    def plan_of(self, narrow: Sequence[Choice], wide: Sequence[Choice]) -> Plan:
        """The candidate with these choices; all others stay as they are."""
        recipe = self.plan.recipe
        widths: dict[str, WritableScheme | None] = dict.fromkeys(self.plan.schemes)
        widths |= {module: recipe.scheme for choice in narrow for module in choice.modules}
        widths |= {module: self.wide for choice in wide for module in choice.modules}
        wider = {m: s for m, s in widths.items() if s != recipe.scheme and self.plan.schemes[m] is not None}
        return make_plan(self.plan.source, replace(recipe, wider=wider))

    def part_of(self, plan: Plan, tensor: str) -> str:
        """Which folder has a tensor of a candidate."""
        scheme = plan.schemes.get(tensor.rpartition(".")[0])
        return "original" if scheme is None else "narrow" if scheme == self.plan.recipe.scheme else "wide"

    def assemble(self, plan: Plan) -> Path:
        """A folder of links that the engine can load."""
        folder = self.folder / "candidate"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        places = {name: (self.part_of(plan, name), f"{self.file_of(name)}.safetensors") for name in plan.tensors}
        for part, file in dict.fromkeys(places.values()):
            (folder / f"{part}-{file}").symlink_to((self.folder / part / file).resolve())
        index = {"metadata": {}, "weight_map": {name: "-".join(place) for name, place in places.items()}}
        config = {**plan.source.config, "quantization_config": plan.quantization_config}
        files = {**documents.copied(plan.source.folder), "model.safetensors.index.json": to_json(index)}
        for name, content in {**files, "config.json": to_json(config)}.items():
            (folder / name).write_bytes(content)
        return folder

    def copy(self, plan: Plan, writer: Writer) -> None:
        """The tensors of a candidate, and the errors of its modules."""
        folders = {part: Tensors.of((self.folder / part).glob("*.safetensors")) for part in self._plans}
        for name in plan.tensors:
            writer.write(name, folders[self.part_of(plan, name)].chunks(name))
        found = [self.errors[self.part_of(plan, f"{module}.weight")].get(module) for module in plan.schemes]
        writer.complete("all", {"errors": [asdict(error) for error in found if error is not None]})

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _with(self, scheme: WritableScheme | None) -> Plan:
        recipe = self.plan.recipe
        if scheme is None:
            return make_plan(self.plan.source, Recipe(recipe.method))
        return make_plan(self.plan.source, replace(recipe, scheme=scheme))


def _choices(plan: Plan, wide: WritableScheme | None) -> list[Choice]:
    """Modules that other engines stack stay together; of a deep model all of an attention or feed-forward do."""
    stacks = dict.fromkeys(
        siblings(module, plan.schemes) for module, scheme in plan.schemes.items() if scheme is not None
    )
    groups: Sequence[tuple[str, ...]] = list(stacks)
    if len(groups) > _MOST_CHOICES:
        blocks: dict[str, list[str]] = {}
        for module in (module for group in groups for module in group):
            blocks.setdefault(module.rpartition(".")[0], []).append(module)
        groups = [tuple(modules) for modules in blocks.values()]
    recipe = plan.recipe
    whole = make_plan(plan.source, replace(recipe, scheme=wide)) if wide is not None else None

    def size(tensors: Mapping[str, Any], module: str) -> int:
        return sum(planned.nbytes for name, planned in tensors.items() if name.rpartition(".")[0] == module)

    found = []
    for modules in groups:
        wider: Mapping[str, Any] = plan.source.entries if whole is None else whole.tensors
        cost = sum(size(wider, module) - size(plan.tensors, module) for module in modules)
        found.append(Choice(modules, max(cost, 1)))
    return found


def _sensitivities(parts: _Parts, bench: Bench, watcher: Watcher) -> list[Choice]:
    """The choices, first what gains most for a byte: each is narrow by itself, and the KL that it costs is measured."""
    told = parts.folder / "sensitivity.json"
    known: dict[str, float] = json.loads(told.read_text()) if told.is_file() else {}
    bench.record()
    watcher.begin("sensitivity", len(parts.choices), len(known))
    for choice in parts.choices:
        if choice.file not in known:
            candidate = parts.assemble(parts.plan_of([choice], []))
            known[choice.file] = bench.measure(candidate, (), quiet=True).estimates["kl"].value
            told.write_bytes(to_json(known))
            watcher.step(choice.file)
    return sorted(parts.choices, key=lambda choice: known[choice.file] / choice.cost, reverse=True)


def _fewest(
    parts: _Parts, order: Sequence[Choice], bench: Bench, criteria: Sequence[Criterion]
) -> tuple[int | None, tuple[Verdict, ...]]:
    """How many of the choices must be wide for the limits to hold on the text of the search; None: all are too few."""
    seen: dict[int, tuple[Verdict, ...]] = {}

    def passes(count: int) -> bool:
        if count not in seen:
            candidate = parts.assemble(parts.plan_of(order[count:], order[:count]))
            measured = bench.measure(candidate, criteria, _SEARCH_SEED)
            seen[count] = judge(criteria, measured.estimates)
        return all(verdict.passed for verdict in seen[count])

    least = fewest(len(order), passes)
    return least, seen[len(order) if least is None else least]


def fewest(total: int, passes: Callable[[int], bool]) -> int | None:
    """The smallest number up to ``total`` that passes, if with one all larger ones do; None if none does."""
    if passes(0):
        return 0
    if not passes(total):
        return None
    low, high = 0, total  # low fails, high passes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _publish(
    parts: _Parts,
    order: Sequence[Choice],
    count: int,
    job: Job,
    calibration: Sequences,
    held_out: Sequences,
    memory: Memory,
    watcher: Watcher,
) -> Outcome:
    """Holds the candidate against the held-out text; where it fails, some with more wide layers."""
    for look in range(1, LOOKS + 1):
        plan = parts.plan_of(order[count:], order[:count])
        writer = Writer(job.out, plan.tensors, f"auto-{count}", restart=True, shard_bytes=job.shard_bytes)
        with nothing_left(writer):
            parts.copy(plan, writer)
            outcome = replace(outcome_of(job, plan, writer, memory), bound_bytes=0)
            used = calibration if plan.recipe.is_calibrated else None
            evidence = evidence_of(plan, outcome, used)
            outcome = conclude(job, plan, writer, outcome, evidence, held_out, watcher, looks=look)
        if outcome.passed or count == len(order):
            break
        count = min(len(order), count + max(1, len(order) // 8))
    return outcome


def _nothing(parts: _Parts, job: Job, memory: Memory) -> Outcome:
    """What there is to say when not even the widest candidate passes."""
    before = parts.plan.source.nbytes
    parts.remove()
    return Outcome(job.out, (), before, before, memory.base_bytes, memory.peak_bytes, 0, ())
