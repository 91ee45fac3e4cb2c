"""Mixtures of experts from quantized checkpoints: experts stay packed, and on a GPU they run joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.engine.nn.moe import Moe
from tests.models import oracle
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged
from tests.models.test_gpu_kernels import gpu_kernels
from tests.quant import layouts
from tests.quant.test_loading import CASES

PROMPT = [5, 77, 130, 9, 250, 31, 8]
SHAPE = {"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": SHAPE,
    "qwen3_moe": {**SHAPE, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
}
ON_GPU = [
    ("mixtral", "gptq 4"),
    ("mixtral", "fp8 static"),
    ("qwen3_moe", "awq"),
    ("qwen3_moe", "fp8 blocks"),
    ("qwen3_moe", "torchao fp8"),
]
ROUNDED = ("fp8 static", "fp8 blocks")
"""Formats that round inputs to three places of fraction, in every layer."""


def quantized(family: str, case: str, path: Path) -> Path:
    source = make_checkpoint(family, path / "float", tokenizer=False, **SHAPES[family])
    return layouts.convert(source, path / "quantized", *CASES[case])


def mixtures(model: Paged) -> list[Moe]:
    return [layer.mlp for layer in model.model._layers if isinstance(layer.mlp, Moe)]


def error(model: Paged, path: Path) -> float:
    """Of its logits, relative to transformers' with the stored numbers."""
    wanted = oracle.logits(path / "exact", torch.float32, PROMPT)
    return float((model.prompt(PROMPT) - wanted).norm() / wanted.norm())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here")
@pytest.mark.parametrize(("family", "case"), ON_GPU)
def test_joined_experts_compute_with_the_stored_numbers(family: str, case: str, tmp_path: Path) -> None:
    moe = pytest.importorskip("sgl.kernels.triton.moe")
    path = quantized(family, case, tmp_path)
    model = Paged(path, torch.bfloat16, kernels=gpu_kernels())
    (mixture,) = mixtures(model)
    assert isinstance(mixture._run, moe.JoinedExperts)
    assert error(model, path) < (0.1 if case in ROUNDED else 0.03)
    torch.manual_seed(0)
    x, weights = torch.randn(5, 128).bfloat16(), torch.rand(5, 2)
    chosen = torch.tensor([[0, 1], [3, 2], [1, 3], [0, 3], [1, 0]], dtype=torch.int32)
    apart = moe.EveryExpert(*([getattr(expert, part).state for expert in mixture.experts] for part in ("up", "down")))
    joined, single = (run(x, weights, chosen).float() for run in (mixture._run, apart))
    assert (joined - single).norm() < (0.05 if case in ROUNDED else 0.02) * single.norm()


@pytest.mark.parametrize("case", ["gptq 4", "awq"])
def test_experts_stay_packed_on_a_cpu(case: str, tmp_path: Path) -> None:
    path = quantized("qwen3_moe", case, tmp_path)
    model = Paged(path, torch.bfloat16)
    (mixture,) = mixtures(model)
    assert {part.format for expert in mixture.experts for part in (expert.up, expert.down)} == {"int4"}
    assert error(model, path) < 0.03
