"""The rehearsal before an engine starts: it runs every kernel once, and nothing hangs on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgl.engine.base.device import CpuDevice, detect_isa
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.rehearsal import Rehearsal
from sgl.kernels.registry import bind
from tests.models.checkpoints import make_checkpoint
from tests.runtime.dense import DenseBackend


def test_a_few_layers_run_a_few_steps(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, tokenizer=False)
    kernels = bind("cpu", detect_isa(), torch.float32, ("reference",))
    made: list[TorchExecutor] = []

    def make() -> TorchExecutor:
        options = {"dtype": torch.float32, "device": CpuDevice(), "kernels": kernels, "load_format": "dummy"}
        model = load_model(path, read_config(path, {}), **options, is_rehearsal=True)  # type: ignore[arg-type]
        assert len(model.spec.layers) == 1
        executor = TorchExecutor(model, DenseBackend(), CpuDevice(), num_slots=2, max_len=64, num_pages=9, page_size=8)
        made.append(executor)
        return executor

    Rehearsal(make, CpuDevice()).join()
    assert made and made[0].loaded._kv == ()  # closed, so it came to its end


def test_what_fails_there_fails_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> TorchExecutor:
        raise RuntimeError("no such kernel")

    with caplog.at_level("DEBUG"):
        Rehearsal(make, CpuDevice()).join()
    assert "no such kernel" in caplog.text
