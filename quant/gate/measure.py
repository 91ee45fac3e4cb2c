"""Measures candidates against the original, both run by the engine; decides nothing.

The original's distributions are written down once, so only one model is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.bench.evals import divergence
from sgl.bench.evals.demo.skills import SKILLS
from sgl.bench.evals.estimates import Estimate
from sgl.bench.evals.local import Local
from sgl.bench.evals.running import evaluate, prepare
from sgl.bench.evals.tasks.demo import Demo, slug
from sgl.engine.base.errors import ConfigError, SglError
from sgl.quant.gate.criteria import Criterion

if TYPE_CHECKING:
    from sgl.bench.evals.divergence import Divergence
    from sgl.quant.recipes.report import Watcher

MAX_RECORDING_BYTES = 4 << 30
_TASK_ITEMS = 400
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "demo-all": tuple(SKILLS),
    "demo-arith": tuple(skill for skill in SKILLS if skill.startswith(("addition", "subtraction"))),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of a candidate: estimates by metric, and the figures behind them."""

    estimates: Mapping[str, Estimate]
    divergence: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]


class Bench:
    """The original on some documents, and how candidates compare with it.

    Args:
        original: directory of the checkpoint.
        documents: sequences of token ids.
        folder: for the recording; may be large.
        options: the server's options that both run with.
    """

    def __init__(
        self,
        original: Path,
        documents: Sequence[Sequence[int]],
        folder: Path,
        options: Mapping[str, Any],
        watcher: Watcher,
    ) -> None:
        self._original = original
        self._documents = documents
        self._folder = folder
        self._options = options
        self._watcher = watcher
        self._recording: divergence.Recording | None = None

    def measure(
        self, candidate: Path, criteria: Sequence[Criterion], seed: int = 0, quiet: bool = False, **options: Any
    ) -> Measured:
        """
        Args:
            criteria: what is to be known; the divergences always are.
            seed: which items tasks draw.
            quiet: whether nothing is reported to the watcher.
            options: the server's options of the candidate alone.

        Raises:
            SglError: the candidate cannot be loaded, or does not answer.
        """
        recording = self.record()
        tasks: dict[str, Mapping[str, Any]] = {}
        with self._load(candidate, **options) as model:
            if not quiet:
                self._watcher.begin("comparing", len(self._documents))
            found = divergence.compare(
                recording, model, on_document=(lambda: None) if quiet else (lambda: self._watcher.step(""))
            )
            for name in dict.fromkeys(criterion.task for criterion in criteria if criterion.task):
                tasks[name] = self._ask(name, model, seed)
        estimates = {**_estimates(found), **{f"eval:{name}": _accuracy(told) for name, told in tasks.items()}}
        return Measured(estimates, found.to_dict(), tasks)

    def record(self) -> divergence.Recording:
        """What the original thinks of the documents, measured at the first call."""
        if self._recording is None:
            self._watcher.begin("original", len(self._documents))
            with self._load(self._original) as model:
                self._recording = divergence.record(
                    model,
                    self._documents,
                    self._folder,
                    max_bytes=MAX_RECORDING_BYTES,
                    on_document=lambda: self._watcher.step(""),
                )
        return self._recording

    def _load(self, model: Path, **options: Any) -> Local:
        return Local.load(model_path=str(model), **{"log_level": "error", **self._options, **options})

    def _ask(self, name: str, model: Local, seed: int) -> Mapping[str, Any]:
        task = task_of(name, seed)
        run = prepare(task, model)
        self._watcher.begin(name, len(run.items))
        evaluate(task, model, on_record=lambda _: self._watcher.step(""), run=run)
        if run.interrupted:
            raise KeyboardInterrupt
        summary = run.summary()
        if summary["num_failed"]:
            raise SglError(f"{summary['num_failed']} questions of {name} failed: {summary['first_error']}")
        kept = ("accuracy", "low", "high", "num_items")
        return {**{key: summary[key] for key in kept}, "data_hash": run.data_hash}


def fitting(
    documents: Sequence[Sequence[int]], hf_config: Mapping[str, Any], folder: Path
) -> tuple[tuple[int, ...], ...]:
    """The documents, cut so that all distributions of the original have room in ``folder``.

    Kept in part they would give a lower bound of the divergence, which proves nothing.
    """
    vocab_size = hf_config.get("vocab_size") or (hf_config.get("text_config") or {}).get("vocab_size") or 1
    room = min(MAX_RECORDING_BYTES, shutil.disk_usage(folder).free // 2)
    positions = room // (4 * vocab_size)
    length = max(map(len, documents))
    while length > 2 and sum(min(len(ids), length) - 1 for ids in documents) > positions:
        length = length * 9 // 10
    return tuple(tuple(ids[:length]) for ids in documents)


def task_of(name: str, seed: int = 0) -> Demo:
    """The task behind ``eval:NAME``.

    Raises:
        ConfigError: there is none of that name.
    """
    skills = _SECTIONS.get(name)
    if skills is None and not name.startswith("demo-"):
        known = ", ".join([*_SECTIONS, *(f"demo-{slug(skill)}" for skill in SKILLS)])
        raise ConfigError(f"--gate: there is no task {name!r:.60}; known are {known}.", param="--gate")
    count = _TASK_ITEMS if skills is None else max(_TASK_ITEMS // len(skills), 50)
    return Demo(skills or (name,), count, seed)


def check(criteria: Sequence[Criterion]) -> None:
    """
    Raises:
        ConfigError: a task is not known.
    """
    for criterion in criteria:
        if criterion.task:
            task_of(criterion.task)


def _estimates(found: Divergence) -> dict[str, Estimate]:
    """By metric. A mean of what was kept of the distributions is a lower bound, which proves nothing."""
    kl = found.kl if found.is_exact else Estimate(found.kl.value)
    return {
        "kl": kl,
        "top1": found.top1_agreement,
        "ppl": found.perplexity_candidate,
        "ppl-ratio": found.perplexity_ratio,
        "ppl-original": found.perplexity_reference,
    }


def _accuracy(told: Mapping[str, Any]) -> Estimate:
    return Estimate(told["accuracy"], told["low"], told["high"])
