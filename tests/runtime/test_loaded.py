"""Exchanging the model behind an executor: it takes place whole or not at all, and captures outlive a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.engine.base.device import CpuDevice
from sgl.engine.base.errors import ModelError
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.nn.decoder import Model
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.graphs import Graphs
from sgl.engine.runtime.weights import Source, Weights
from tests.models.checkpoints import make_checkpoint
from tests.runtime.test_graphs import OPTIONS, check, load, make_executor, make_inits, play


class Refusal:
    """A canary that lets nothing pass once it is told to."""

    is_strict = True

    def check(self, source: Source) -> None:
        if self.is_strict:
            raise ModelError("the canary failed.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    def make(seed: int) -> Model:
        return load(make_checkpoint("llama", tmp_path_factory.mktemp(f"llama{seed}"), seed=seed, tokenizer=False))

    return make(1), make(2)


def make_weights(executor: TorchExecutor, model: Model, canary: Any) -> Weights:
    scheduler = Scheduler(SchedulerConfig(8, 4, 2, 16, 10, 32), NoGrammars())
    source = Source("old", "dummy", Path(), ())

    def load(path: str, load_format: str) -> Model:
        raise AssertionError("these tests read nothing")

    return Weights(executor.loaded, scheduler, CpuDevice(), model, source, load, Path, canary)


def prepared(model: Model) -> TorchExecutor:
    executor = make_executor(model, CpuDevice(), OPTIONS)
    while executor.prepare():
        pass
    return executor


@pytest.mark.parametrize("part", ["Graphs", "Pooler", "allocate_kv"])
def test_without_memory_for_the_new_model_the_old_one_goes_on(
    models: tuple[Model, Model], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = models
    executor, inits = prepared(old), make_inits(3)
    expected = play(make_executor(old, CpuDevice(), None), inits)
    if part == "allocate_kv":  # that is asked for it only where there is none
        executor.loaded.release()
    before = vars(executor.loaded).copy()

    def fail(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(f"sgl.engine.runtime.loaded.{part}", fail)
        with pytest.raises(torch.OutOfMemoryError):
            make_weights(executor, old, Refusal()).install(Source("new", "dummy", Path(), ()), new)
    assert vars(executor.loaded) == before
    if part != "allocate_kv":
        check(play(executor, inits), expected)


def test_what_the_canary_refuses_leaves_the_captures_of_before(models: tuple[Model, Model]) -> None:
    old, new = models
    executor, inits, canary = prepared(old), make_inits(3), Refusal()
    expected = [play(make_executor(model, CpuDevice(), None), inits) for model in models]
    weights, runner = make_weights(executor, old, canary), executor.loaded.runner
    with pytest.raises(ModelError, match="canary"):
        weights.install(Source("new", "dummy", Path(), ()), new)
    assert executor.loaded.runner is runner and isinstance(runner, Graphs) and runner.sizes
    assert weights.describe()["model_path"] == "old"
    check(play(executor, inits), expected[0])
    canary.is_strict = False
    weights.install(Source("new", "dummy", Path(), ()), new)
    assert executor.prepare(), "the new model has captures of its own"
    check(play(executor, inits), expected[1])


def test_a_refusal_after_a_release_leaves_nothing_allocated(models: tuple[Model, Model]) -> None:
    executor = prepared(models[0])
    weights = make_weights(executor, models[0], Refusal())
    assert weights.release() == {"success": True}
    with pytest.raises(ModelError):
        weights.install(Source("old", "dummy", Path(), ()), models[0])
    assert executor.loaded._kv == () and not executor.prepare()
