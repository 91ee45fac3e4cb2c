"""Qwen 1.5 and 2 with experts: most layers have them, beside one that every token takes in part."""

from __future__ import annotations

from dataclasses import replace

from sgl.engine.models import llama, qwen2
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.nn.spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAMES = replace(
    llama.NAMES,
    router="model.layers.{}.mlp.gate",
    expert_up=("model.layers.{}.mlp.experts.{}.gate_proj", "model.layers.{}.mlp.experts.{}.up_proj"),
    expert_down="model.layers.{}.mlp.experts.{}.down_proj",
    shared_up=("model.layers.{}.mlp.shared_expert.gate_proj", "model.layers.{}.mlp.shared_expert.up_proj"),
    shared_down="model.layers.{}.mlp.shared_expert.down_proj",
    shared_gate="model.layers.{}.mlp.shared_expert_gate",
)


def with_experts(base: ModelSpec, config: HfConfig, moe: MoeSpec) -> ModelSpec:
    """A dense description with experts in every ``decoder_sparse_step``-th layer, ``mlp_only_layers`` excepted."""
    step, dense = config.integer("decoder_sparse_step", 1), config.counts("mlp_only_layers")
    layers = (
        LayerSpec(layer.attention, layer.mlp if index in dense or (index + 1) % step else moe)
        for index, layer in enumerate(base.layers)
    )
    return replace(base, layers=tuple(layers))


def spec(config: HfConfig) -> ModelSpec:
    bias = config.flag("qkv_bias", True)
    base = llama.decoder(config, num_kv_heads=16, qkv_bias=bias, windows=qwen2.windows(config))
    activation = config.text("hidden_act", "silu")
    moe = MoeSpec(
        config.integer("num_experts", 60),
        config.integer("num_experts_per_tok", 4),
        MlpSpec(config.integer("moe_intermediate_size", 1408), activation),
        RoutingSpec(renormalize=config.flag("norm_topk_prob", False)),
        shared=MlpSpec(config.integer("shared_expert_intermediate_size", 5632), activation),
        shared_gate=True,
    )
    return with_experts(base, config, moe)


FAMILY = Family("qwen2_moe", ("Qwen2MoeForCausalLM",), spec, NAMES, tool_parser="qwen25")
