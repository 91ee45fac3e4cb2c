"""The guess of the memory budget against a model whose sizes are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl.engine.base.estimate import estimate
from tests.base.machines import LAPTOP, resolved

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").write_bytes(bytes(6000))
    (tmp_path / "b.safetensors").write_bytes(bytes(4000))
    return tmp_path


@pytest.mark.parametrize(
    ("more", "dtype", "weights", "page"),
    [
        ({"num_key_value_heads": 2}, "float32", 11000, 16 * 3 * 2 * 2 * 16 * 4),
        ({}, "bfloat16", 5500, 16 * 3 * 2 * 4 * 16 * 2),
        ({"head_dim": 32}, "float32", 11000, 16 * 3 * 2 * 4 * 32 * 4),
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
