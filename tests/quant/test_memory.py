"""A model several times larger than the memory that quantizing it takes, by what the kernel counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, INNER, VOCAB, LAYERS = 1536, 6144, 8000, 18
NOISE = 1_048_573

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 1.4 GB, which is never in memory as a whole here either."""
    folder = tmp_path_factory.mktemp("large")
    noise = (torch.randn(NOISE, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def weight(rows: int, inner: int) -> torch.Tensor:
        return noise.repeat(-(-rows * inner // NOISE))[: rows * inner].view(rows, inner).clone()

    places = {}
    for layer in range(LAYERS):
        prefix, file = f"model.layers.{layer}", f"model-{layer:05}.safetensors"
        tensors = {f"{prefix}.self_attn.{name}_proj.weight": weight(HIDDEN, HIDDEN) for name in "qkvo"}
        tensors |= {f"{prefix}.mlp.{name}_proj.weight": weight(INNER, HIDDEN) for name in ("gate", "up")}
        tensors[f"{prefix}.mlp.down_proj.weight"] = weight(HIDDEN, INNER)
        tensors |= {f"{prefix}.{name}_layernorm.weight": torch.ones(HIDDEN) for name in ("input", "post_attention")}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    outside = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    save_file(outside, folder / "model-last.safetensors", {"format": "pt"})
    places |= dict.fromkeys(outside, "model-last.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": True}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", [["fp8"], ["int4", "--algorithm", "rtn", "--asymmetric"], ["nvfp4"]], ids=" ".join)
def test_no_more_than_two_layers_and_the_embedding_are_in_memory(
    method: list[str], model: Path, tmp_path: Path
) -> None:
    """In a process of its own, whose growth and highest mark are the kernel's own figures."""
    command = [sys.executable, "-m", "sgl", "quantize", *method, str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evidence = json.loads((tmp_path / "out" / "quantization_evidence.json").read_text())
    memory, source = evidence["memory_bytes"], evidence["size_bytes"]["before"]
    layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER) + 2 * 4 * HIDDEN
    assert memory["two_layers"] == 2 * layer + 2 * VOCAB * HIDDEN
    assert memory["peak"] - memory["base"] <= memory["two_layers"]
    assert source > 2.5 * memory["peak"]
