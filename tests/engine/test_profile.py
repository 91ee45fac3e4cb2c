"""A profile of a real engine: its steps are whole, its native stages stand where they ran, and it starts unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sgl
from sgl.kernels.cpu import native
from sgl.profiles.analysis import OTHER, Analysis, Line, analyse
from sgl.profiles.trace import read
from tests.models.checkpoints import make_checkpoint
from tests.profiles.chrome_format import problems

OPTIONS: dict[str, Any] = {
    **{"device": "cpu", "max_total_tokens": 1024, "max_running_requests": 8, "cpu_threads": 1, "page_size": 16},
    **{"random_seed": 0, "log_level": "error", "dtype": "bfloat16", "disable_radix_cache": True},
}
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
PROMPT = list(range(20, 60))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16)


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path))
    return tmp_path


def analysed(traces: Path) -> Analysis:
    [trace] = traces.glob("*.trace.json.gz")
    return analyse(read(trace))


def test_a_profile_has_whole_steps_and_what_they_are_made_of(path: Path, traces: Path) -> None:
    with sgl.Engine(model_path=str(path), **OPTIONS) as engine:
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
        engine.start_profile(num_steps=8)
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    [trace] = traces.glob("*.trace.json.gz")
    assert problems(trace) == [], "viewers read it"
    found = analyse(read(trace))
    assert (found.num_steps, found.device, found.notes) == (8, "cpu", [])
    assert found.num_tokens == len(PROMPT) + 7  # the prompt in one step, then a token in each
    assert {line.name for line in found.phases} == {"schedule", "forward", "sample", "result", "update", OTHER}
    assert sum(line.total_us for line in found.phases) == pytest.approx(found.step_us)
    assert 0 < found.coverage <= 1
    assert found.cost.is_known


@pytest.mark.skipif(bool(native.missing()), reason="needs the C++ kernels")
def test_native_stages_stand_where_they_ran(path: Path, traces: Path) -> None:
    """The joined decoder is one call: its stages come from its own clock, and lie within the call for all that."""
    with sgl.Engine(model_path=str(path), **OPTIONS) as engine:
        engine.start_profile(num_steps=5)
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    found = analysed(traces)
    num_layers = len(found.layers)
    assert num_layers == found.cost.attention[0].num_layers
    kernels = {line.name: line for line in found.kernels}
    for name in ("attention norm", "qkv", "rope and store", "attention", "out", "mlp norm", "up", "down"):
        assert kernels[name].count == 5 * num_layers
    for name in ("qkv", "attention", "out", "up", "down", "logits"):
        work = kernels[name].work
        assert work is not None and work.size_bytes > 0 and work.flops > 0
    for node in found.middle.walk():
        if node.event.kind == "native":
            assert "decoder" in {around.name for around in node.path()}
    layers_us = sum(line.total_us for line in found.layers)
    stages_us = sum(line.total_us for name, line in kernels.items() if "::" not in name)
    assert layers_us == pytest.approx(stages_us - kernels["rotation"].total_us - _spans_us(kernels), rel=0.01)


def _spans_us(kernels: dict[str, Line]) -> float:
    return sum(kernels[name].total_us for name in ("decoder", "logits"))


def test_layers_that_are_not_joined_are_spans(path: Path, traces: Path) -> None:
    with sgl.Engine(model_path=str(path), **{**OPTIONS, "kernel": ["reference"]}) as engine:
        engine.start_profile(num_steps=3)
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    found = analysed(traces)
    assert [line.count for line in found.layers] == [3] * len(found.layers) and found.layers
    assert {"aten::linear", "aten::mm", "aten::addmm", "aten::matmul"} & {line.name for line in found.kernels}


def test_steps_are_recorded_unasked(path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_PROFILE_STEPS", "3:100")
    with sgl.Engine(model_path=str(path), **OPTIONS) as engine:
        engine.generate(input_ids=PROMPT, sampling_params=GREEDY)
    assert analysed(traces).num_steps == 9  # of twelve; the end of the engine ends the profile
