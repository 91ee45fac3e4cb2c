"""Mixtral: Mistral with experts in place of every feed-forward."""

from __future__ import annotations

from dataclasses import replace

from sgl.engine.models import llama, mistral
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.nn.spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec

NAMES = replace(
    llama.NAMES,
    router="model.layers.{}.block_sparse_moe.gate",
    expert_up=("model.layers.{}.block_sparse_moe.experts.{}.w1", "model.layers.{}.block_sparse_moe.experts.{}.w3"),
    expert_down="model.layers.{}.block_sparse_moe.experts.{}.w2",
)


def spec(config: HfConfig) -> ModelSpec:
    base = mistral.spec(config)
    expert = MlpSpec(config.integer("intermediate_size"), config.text("hidden_act", "silu"))
    moe = MoeSpec(config.integer("num_local_experts", 8), config.integer("num_experts_per_tok", 2), expert)
    return replace(base, layers=tuple(LayerSpec(layer.attention, moe) for layer in base.layers))


FAMILY = Family("mixtral", ("MixtralForCausalLM",), spec, NAMES, tool_parser="mistral")
