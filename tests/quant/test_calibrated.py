"""Checkpoints through llmcompressor: every one loads here and in transformers, to the same numbers."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgl.bench.evals.local import Local
from sgl.quant.gate.data import DataOptions
from sgl.quant.gate.documents import read_evidence
from sgl.quant.gate.job import Job, run
from sgl.quant.recipes import methods
from tests.models.checkpoints import make_checkpoint
from tests.quant.test_recipes import Silent, tensors_of

pytest.importorskip("llmcompressor")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # of llmcompressor and transformers
]

DATA = DataOptions(num_calibration=8, max_tokens=64)
METHODS: dict[str, Callable[[], methods.RecipeFor]] = {
    "fp8": methods.fp8,
    "fp8-static": lambda: methods.fp8(static=True),
    "fp8-block": lambda: methods.fp8(block=True),
    "int8": methods.int8,
    "int8-weight-only": lambda: methods.int8(weight_only=True),
    "int8-gptq": lambda: methods.int8(algorithm="gptq"),
    "int8-smoothquant": lambda: methods.int8(algorithm="smoothquant"),
    "int4-rtn": lambda: methods.int4(algorithm="rtn", group=32),
    "int4-gptq": lambda: methods.int4(group=64),
    "int4-gptq-asymmetric": lambda: methods.int4(group=32, asymmetric=True),
    "int4-awq": lambda: methods.int4(algorithm="awq", group=32),
    "nvfp4": methods.nvfp4,
    "mxfp4": methods.mxfp4,
    "kv-fp8": methods.kv_fp8,
}
CALIBRATED = ("fp8-static", "int8-gptq", "int8-smoothquant", "int4-gptq", "int4-awq", "kv-fp8")
PROMPT = [5, 17, 200, 31, 8, 99, 140, 260, 77, 12, 301, 45]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    return make_checkpoint("llama", folder, dtype=torch.bfloat16, **sizes)


ROUNDS_ACTIVATIONS = ("int8", "int8-gptq", "int8-smoothquant")
"""Here; on a CPU this engine computes the other formats with exact activations."""

IN_BF16 = ("nvfp4", "mxfp4")
"""What compressed-tensors decompresses to bfloat16 only."""


def ours(folder: Path) -> np.ndarray:
    """Log probabilities behind every token of the prompt."""

    async def collect(local: Local) -> np.ndarray:
        return np.concatenate([rows async for rows in local.next_token_logprobs(PROMPT)])

    options = {"max_total_tokens": 512, "log_level": "error", "dtype": "float32"}
    with Local.load(model_path=str(folder), **options) as local:
        return local.run(collect(local))


def theirs(folder: Path, rounds_activations: bool = False) -> np.ndarray:
    """The same by transformers, with the weights as compressed-tensors decompresses them."""
    from compressed_tensors.quantization import disable_quantization
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    stored = "quantization_config" in json.loads((folder / "config.json").read_text())
    options: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if stored else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval().float()
    loaded.apply(disable_quantization)  # of activations, which the library also rounds, in bfloat16
    for name, module in loaded.named_modules():
        if rounds_activations and name.endswith("_proj"):
            module.register_forward_pre_hook(round_tokens)
    with torch.inference_mode():
        found = loaded(torch.tensor([PROMPT]), use_cache=False).logits[0].float().log_softmax(-1)
    del loaded
    gc.collect()
    return found.numpy()


def round_tokens(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    """int8 with a scale per token, by its definition."""
    scales = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / scales).round() * scales,)


@pytest.mark.parametrize("method", METHODS)
def test_this_engine_and_transformers_agree(model: Path, tmp_path: Path, method: str) -> None:
    run(Job(str(model), tmp_path / "out", METHODS[method](), DATA), Silent())
    rounds = method in ROUNDS_ACTIVATIONS
    mine, other, original = ours(tmp_path / "out"), theirs(tmp_path / "out", rounds), theirs(model)
    difference, effect = np.abs(mine - other).mean(), np.abs(other - original).mean()
    assert effect > 0.005 or method == "kv-fp8"
    most = 0.3 * effect if method in IN_BF16 else 1e-3
    assert difference < most, f"{difference} apart; rounding alone moves {effect}"
    evidence = read_evidence(tmp_path / "out")
    assert (evidence.calibration is not None) == (method in CALIBRATED or "gptq" in method)


@pytest.mark.parametrize("method", ["int4-gptq", "int8-smoothquant", "fp8-static"])
def test_an_interrupted_calibration_goes_on(model: Path, tmp_path: Path, method: str) -> None:
    run(Job(str(model), tmp_path / "whole", METHODS[method](), DATA), Silent())
    job = Job(str(model), tmp_path / "out", METHODS[method](), DATA)
    with pytest.raises(KeyboardInterrupt):
        run(job, Silent(stop_at=1))
    watcher = Silent()
    run(job, watcher)
    assert watcher.steps == 1
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    different = [
        name for name, tensor in whole.items() if not tensor.view(torch.uint8).equal(resumed[name].view(torch.uint8))
    ]
    assert not different


def test_ignored_layers_are_not_calibrated(model: Path, tmp_path: Path) -> None:
    run(Job(str(model), tmp_path / "out", methods.int4([".*down_proj"], group=32), DATA), Silent())
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    kept = "model.layers.0.mlp.down_proj"
    assert after[f"{kept}.weight"].equal(before[f"{kept}.weight"])
    assert "model.layers.0.mlp.up_proj.weight_packed" in after
    assert kept in json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"]
