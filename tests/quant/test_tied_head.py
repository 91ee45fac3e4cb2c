"""A head that shares a quantized embedding multiplies by the stored numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgl.engine.base import hub
from sgl.engine.nn.embedding import Embedding, TiedHead
from sgl.engine.nn.linear import Linear
from sgl.kernels.cpu import native
from tests.models import oracle
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged
from tests.quant import gguf_file

PROMPT = [5, 17, 250, 3, 99, 42, 7, 300]


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_file_in_q8_0_keeps_its_bytes(tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    source = make_checkpoint("qwen2", tmp_path / "source", tied=tied, **shape)
    stored = gguf_file.convert(source, tmp_path / "model.gguf", gguf_file.Q8_0)
    weights = {name: weight.contiguous() for name, weight in stored.items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model = Paged(hub.locate(str(tmp_path / "model.gguf"), ()), torch.bfloat16)
    leaves = model.model.leaves
    head = next(leaf for leaf in reversed(leaves) if isinstance(leaf, Linear | TiedHead))
    assert isinstance(head, TiedHead) == tied and head.format == "int8"
    (embedding,) = (leaf for leaf in leaves if isinstance(leaf, Embedding))
    assert embedding.stored is None
    wanted = oracle.logits(source, torch.float32, PROMPT)
    assert (model.prompt(PROMPT) - wanted).norm() / wanted.norm() < 0.02
