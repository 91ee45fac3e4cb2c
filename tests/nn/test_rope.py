"""Frequencies against transformers for every supported rope_type, from both spellings of config.json."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sgl.engine.models.family import HfConfig
from sgl.engine.nn.rope import frequencies_of

HEAD_DIM, MAX_POSITIONS = 64, 4096

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
CASES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 100},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.5},
]


def theirs(parameters: dict[str, Any], theta: float) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    return frequencies, scale


@pytest.mark.parametrize("parameters", CASES, ids=lambda p: "-".join(map(str, p.values())))
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("former", [False, True], ids=["rope_parameters", "rope_scaling"])
def test_frequencies(parameters: dict[str, Any], theta: float, former: bool) -> None:
    if former:
        scaling = {"type" if name == "rope_type" else name: value for name, value in parameters.items()}
        fields = {"rope_theta": theta, "rope_scaling": scaling}
    else:
        fields = {"rope_parameters": {**parameters, "rope_theta": theta}}
    frequencies, scale = frequencies_of(HfConfig(fields).rope(HEAD_DIM, MAX_POSITIONS))
    wanted, wanted_scale = theirs(parameters, theta)
    assert scale == pytest.approx(wanted_scale)
    torch.testing.assert_close(frequencies, wanted, rtol=1e-6, atol=0)


def test_default() -> None:
    frequencies, scale = frequencies_of(HfConfig({"rope_theta": 100.0}).rope(4, 10))
    assert frequencies.tolist() == pytest.approx([1.0, 0.1]) and scale == 1.0
    assert HfConfig({}).rope(4, 10).theta == 10000.0


def test_scaling_given_as_an_override_keeps_the_theta_of_the_checkpoint() -> None:
    fields = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
        "rope_scaling": {"type": "linear", "factor": 2},
    }
    spec = HfConfig(fields).rope(4, 10)
    assert (spec.theta, spec.kind, spec.parameters["factor"]) == (7.0, "linear", 2)
