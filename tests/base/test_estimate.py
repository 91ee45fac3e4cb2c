"""The guess of the memory budget against a model whose sizes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sgl.engine.base.estimate import estimate
from sgl.engine.base.loaded_size import loaded_bytes
from tests.base.machines import LAPTOP, resolved

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"model.embed_tokens.weight": np.zeros((50, 30), np.float32)}, tmp_path / "a.safetensors")
    save_file({"model.layers.0.up_proj.weight": np.zeros((40, 25), np.float32)}, tmp_path / "b.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("more", "dtype", "weights", "page"),
    [
        ({"num_key_value_heads": 2}, "float32", 11000, 16 * 3 * 2 * 2 * 16 * 4),
        ({}, "bfloat16", 5500, 16 * 3 * 2 * 4 * 16 * 2),
        ({"head_dim": 32}, "float32", 11000, 16 * 3 * 2 * 4 * 32 * 4),
        ({"kv_lora_rank": 24, "qk_rope_head_dim": 8}, "float32", 11000, 16 * 3 * (24 + 8) * 4),
    ],
)
def test_weights_and_pages(folder: Path, more: dict[str, object], dtype: str, weights: int, page: int) -> None:
    hf = SIZES | {"torch_dtype": "float32", "max_position_embeddings": 512} | more
    budget = estimate(resolved(hf=hf, model__dtype=dtype), hf, folder, LAPTOP)
    assert budget is not None
    lines = {line.name: line.size_bytes for line in budget.lines}
    assert lines["weights"] == -weights
    assert lines["KV cache"] == -budget.num_pages * page


def test_gpt2_has_names_of_its_own(folder: Path) -> None:
    hf = {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 100, "n_positions": 512}
    assert estimate(resolved(hf=hf), hf, folder, LAPTOP) is not None


def test_nothing_is_said_of_what_is_not_known(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    hf = SIZES | {"n_positions": 512}
    assert estimate(resolved(hf=hf), {"n_positions": 512}, folder, LAPTOP) is None
    assert estimate(resolved(hf=hf), hf, tmp_path_factory.mktemp("empty"), LAPTOP) is None


STORED = {
    "bf16": ({"weight": ("BF16", 4, 64)}, None),
    "fp8": ({"weight": ("F8_E4M3", 4, 64)}, {"quant_method": "fp8"}),
    "fp8 odd rows": ({"weight": ("F8_E4M3", 4, 62)}, {"quant_method": "fp8"}),
    "fp8 odd blocks": ({"weight": ("F8_E4M3", 4, 64)}, {"quant_method": "fp8", "weight_block_size": [64, 48]}),
    "fp8 blocks": (
        {"weight": ("F8_E4M3", 4, 256)},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [128, 128]}}},
        },
    ),
    "int8": ({"weight": ("I8", 4, 64)}, {"quant_method": "compressed-tensors"}),
    "awq": ({"qweight": ("I32", 64, 4)}, {"quant_method": "awq", "bits": 4}),
    "gptq3": ({"qweight": ("I32", 6, 32)}, {"quant_method": "gptq", "bits": 3}),
    "pack8": (
        {"weight_packed": ("I32", 4, 16)},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
    ),
    "nf4": ({"weight": ("U8", 128, 1)}, {"quant_method": "bitsandbytes"}),
    "mxfp4": ({"weight_packed": ("U8", 4, 32)}, {"quant_method": "compressed-tensors"}),
}
"""Checkpoints by what they hold: tensors of one layer, and what config.json says of them."""


@pytest.mark.parametrize(
    ("stored", "options", "wanted"),
    [
        ("bf16", {}, 512),
        ("bf16", {"model__quantization": "int8"}, 256),
        ("bf16", {"model__torchao_config": "int4wo-128"}, 143),
        ("bf16", {"model__quantization": "fp8"}, 256),
        ("fp8", {}, 256),
        ("fp8", {"model__dtype": "float32"}, 1024),
        ("fp8 odd rows", {}, 496),
        ("fp8 odd blocks", {}, 512),
        ("fp8 blocks", {}, 1024),
        ("int8", {}, 256),
        ("int8", {"model__dtype": "float32"}, 1024),
        ("awq", {}, 1024),
        ("awq", {"model__dtype": "float32"}, 8192),
        ("gptq3", {}, 1024),
        ("pack8", {}, 256),
        ("nf4", {}, 143),
        ("nf4", {"model__dtype": "float32"}, 1024),
        ("mxfp4", {}, 256),
    ],
    ids=str,
)
def test_formats_that_are_decoded_grow(stored: str, options: dict[str, str], wanted: int, tmp_path: Path) -> None:
    tensors, method = STORED[stored]
    header = {
        f"model.layers.0.up_proj.{name}": {"dtype": kind, "shape": shape} for name, (kind, *shape) in tensors.items()
    }
    text = json.dumps({"__metadata__": {}, **header}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    hf = SIZES | {"max_position_embeddings": 512, "torch_dtype": "bfloat16"}
    hf |= {} if method is None else {"quantization_config": method}
    config = resolved(hf=hf, **{"model__dtype": "bfloat16", **options})
    assert loaded_bytes(tmp_path, config, hf) == wanted
