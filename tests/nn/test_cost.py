from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sgl.engine.base.cost import AttentionCost, Cost
from sgl.engine.base.device import open_device
from sgl.engine.models.loader import load_model, read_config
from sgl.kernels.registry import bind
from tests.models.checkpoints import FAMILIES, VOCAB_SIZE, make_checkpoint

SHAPES = Path(__file__).resolve().parents[2] / "bench" / "shapes"


def cost_of(path: Path, dtype: torch.dtype = torch.float32, quantization: str = "none", **overrides: int) -> Cost:
    device = open_device("cpu")
    kernels = bind("cpu", device.isa, dtype, ["reference"])
    config = {**read_config(path, {}), **overrides}
    format = "dummy" if not (path / "model.safetensors").exists() else "auto"
    return load_model(
        path, config, dtype=dtype, device=device, kernels=kernels, load_format=format, quantization=quantization
    ).cost


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_counted_once(family: str, tied: bool, tmp_path: Path) -> None:
    """transformers' parameters: matrices of the layers, the head, and what is neither (norms, tables)."""
    path = make_checkpoint(family, tmp_path, tied=tied)
    cost = cost_of(path)
    theirs = AutoModelForCausalLM.from_pretrained(path)
    inner = [p for name, p in theirs.named_parameters() if ".layers." in name or ".h." in name]
    matrices = sum(p.numel() for p in inner if p.dim() == 2)
    biases = sum(p.numel() for name, p in theirs.named_parameters() if name.endswith("bias") and "ln" not in name)
    (linears,) = cost.linears
    assert (linears.format, linears.params) == ("fp32", matrices)
    assert linears.size_bytes == 4 * (matrices + biases)
    assert (cost.head.format, cost.head.params) == ("fp32", 64 * VOCAB_SIZE)
    assert cost.head.size_bytes == 4 * 64 * VOCAB_SIZE
    tables = sum(module.weight.numel() for module in theirs.modules() if isinstance(module, torch.nn.Embedding))
    total = sum(p.numel() for p in theirs.parameters()) - tables + (64 * VOCAB_SIZE if tied else 0)
    repeated = 2 * (4 + 2 - 2) * 24 if family == "qwen3" else 0  # the norm of a head is kept once for every head
    assert cost.weight_bytes == 4 * (total + repeated)


def test_layers_that_attend_alike_are_counted_together(tmp_path: Path) -> None:
    cost = cost_of(make_checkpoint("mistral", tmp_path, sliding_window=8), torch.bfloat16)
    # 4 query heads and 2 of keys and values, 24 wide; scores and sum are 2 operations each for every pair.
    assert cost.attention == (
        AttentionCost(num_layers=2, flops_per_pair=4 * 4 * 24, kv_bytes_per_token=2 * 2 * 24 * 2, window=8),
    )
    assert cost.kv_bytes_per_token == 2 * 2 * 2 * 24 * 2
    assert cost.activation_bytes_per_token == 2 * 2 * 64 * 2 and cost.format == "bf16"


def test_a_quantized_model_has_its_formats(tmp_path: Path) -> None:
    cost = cost_of(make_checkpoint("llama", tmp_path), torch.bfloat16, "int4-g32")
    assert [weights.format for weights in cost.linears] == ["int4"] and cost.head.format == "int8"


def test_the_shape_of_qwen() -> None:
    """One layer of Qwen2.5-0.5B: q 896, k and v 128 each, out 896, gate and up and down 4864."""
    cost = cost_of(SHAPES / "qwen2.5-0.5b", torch.bfloat16, num_hidden_layers=1, vocab_size=1000)
    (linears,) = cost.linears
    assert linears.params == 896 * (896 + 128 + 128) + 896 * 896 + 3 * 896 * 4864
    assert cost.head.params == 896 * 1000 and cost.logits_bytes_per_row == 8 * 1000
    assert cost.attention[0].flops_per_pair == 4 * 14 * 64
    assert cost.kv_bytes_per_token == 2 * 2 * 64 * 2
    assert AutoConfig.from_pretrained(SHAPES / "qwen2.5-0.5b").num_hidden_layers == 24
