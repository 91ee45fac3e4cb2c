"""Whole models of the kernels that a GPU would run, on CPU tensors under Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgl.kernels.registry import Kernels, bind
from tests.models import oracle
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here")

PROMPT = [5, 77, 130, 9, 250, 31, 8]
CASES = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"head_dim": 16},
    "gpt2": {},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "num_hidden_layers": 2,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
}


def gpu_kernels() -> Kernels:
    """All but the product that only cuBLAS has."""
    return bind("cuda", "sm90", torch.bfloat16, ("linear=reference",))


@pytest.mark.parametrize("family", CASES)
def test_logits(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path, dtype=torch.bfloat16, tokenizer=False, **CASES[family])
    paged, truth = Paged(path, torch.bfloat16, kernels=gpu_kernels()), oracle.true_bf16_logits(path, PROMPT)
    for chunk in (len(PROMPT), 1):
        assert (paged.prompt(PROMPT, chunk) - truth).abs().max() < 2e-2 * truth.abs().max()


@pytest.mark.parametrize("quantization", ["int8", "int4-g32"])
def test_quantized_logits_are_those_of_the_cpu(quantization: str, tmp_path: Path) -> None:
    """Both round weights and inputs alike; but the interpreter cuts numbers off where they become bfloat16."""
    path = make_checkpoint("qwen2", tmp_path, dtype=torch.bfloat16, tokenizer=False)
    loading = {"quantization": quantization}
    ours = Paged(path, torch.bfloat16, kernels=gpu_kernels(), loading=loading).prompt(PROMPT)
    theirs = Paged(path, torch.bfloat16, overrides=("reference",), loading=loading).prompt(PROMPT)
    assert (ours - theirs).abs().max() < 5e-2 * theirs.abs().max()
