"""The line that a finished evaluation leaves: its figures, and what must be known to believe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl.bench import provenance
from sgl.bench.evals.asks import Json, Model
from sgl.bench.evals.items import Task
from sgl.bench.evals.running import Run

FILE = "result.jsonl"


def head(task: Task, model: Model) -> Json:
    """What a journal belongs to: answers of another model or to other settings are others."""
    return {
        "task": task.name,
        "model": model.identity.name,
        "facts": dict(model.identity.facts),
        "settings": dict(task.settings),
    }


def line(run: Run, model: Model, flags: Mapping[str, Any]) -> Json:
    """The result of a run.

    Raises:
        SglError: nothing was answered.
    """
    task = run.task
    data = provenance.Data(task.data or "built-in", run.data_hash, task.data, len(run.items))
    return {
        **provenance.head("eval", flags, task.seed, "any", data),
        "task": task.name,
        "model": model.identity.name,
        "model_facts": dict(model.identity.facts),
        "settings": dict(task.settings),
        **run.summary(),
    }
