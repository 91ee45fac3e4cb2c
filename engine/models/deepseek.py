"""DeepSeek V2 and V3: attention over latents, experts in all but the first layers beside shared ones."""

from __future__ import annotations

import math
from dataclasses import replace

from sgl.engine.base.errors import ModelError
from sgl.engine.models import llama
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.nn.spec import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RopeSpec,
    RoutingSpec,
)

_ATTENTION, _MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."

NAMES = replace(
    llama.NAMES,
    qkv=(_ATTENTION + "q_proj", _ATTENTION + "kv_a_proj_with_mqa"),
    q_down=_ATTENTION + "q_a_proj",
    q_down_norm=_ATTENTION + "q_a_layernorm",
    q_up=_ATTENTION + "q_b_proj",
    kv_down=_ATTENTION + "kv_a_proj_with_mqa",
    kv_down_norm=_ATTENTION + "kv_a_layernorm",
    kv_up=_ATTENTION + "kv_b_proj",
    router=_MLP + "gate",
    router_bias=_MLP + "gate.e_score_correction_bias",
    expert_up=(_MLP + "experts.{}.gate_proj", _MLP + "experts.{}.up_proj"),
    expert_down=_MLP + "experts.{}.down_proj",
    shared_up=(_MLP + "shared_experts.gate_proj", _MLP + "shared_experts.up_proj"),
    shared_down=_MLP + "shared_experts.down_proj",
    drafter="model.layers.{}.",
)


def _attention(config: HfConfig, interleaved: bool) -> AttentionSpec:
    rank, rope_dim = config.integer("kv_lora_rank", 512), config.integer("qk_rope_head_dim", 64)
    latent = LatentSpec(
        rank,
        config.integer("qk_nope_head_dim", 128),
        rope_dim,
        config.integer("v_head_dim", 128),
        config.optional_integer("q_lora_rank", 1536),
        bias=config.flag("attention_bias", False),
    )
    rope = replace(config.rope(rope_dim, config.integer("max_position_embeddings")), interleaved=interleaved)
    return AttentionSpec(
        num_heads=config.integer("num_attention_heads"),
        num_kv_heads=1,
        head_dim=rank + rope_dim,
        scale=(latent.key_dim + rope_dim) ** -0.5 * _sharpening(rope),
        rope=rope,
        latent=latent,
    )


def _sharpening(rope: RopeSpec) -> float:
    """What scores are multiplied by where positions are stretched (Peng et al. 2023), if the checkpoint asks for it."""
    weight, factor = rope.parameters.get("mscale_all_dim", 0.0), rope.parameters.get("factor", 1.0)
    if rope.kind == "default" or not weight or factor <= 1:
        return 1.0
    return (0.1 * weight * math.log(factor) + 1.0) ** 2


def _decoder(config: HfConfig, routing: RoutingSpec, interleaved: bool, first_dense: int) -> ModelSpec:
    activation, size = config.text("hidden_act", "silu"), config.integer("moe_intermediate_size", 1407)
    num_shared = config.count("n_shared_experts", 0)
    moe = MoeSpec(
        config.integer("n_routed_experts", 256),
        config.integer("num_experts_per_tok", 8),
        MlpSpec(size, activation),
        routing,
        MlpSpec(size * num_shared, activation) if num_shared else None,
    )
    dense = MlpSpec(config.integer("intermediate_size"), activation, bias=config.flag("mlp_bias", False))
    attention, every = _attention(config, interleaved), config.integer("moe_layer_freq", 1)
    first = config.count("first_k_dense_replace", first_dense)
    layers = (
        LayerSpec(attention, dense if index < first or index % every else moe)
        for index in range(config.integer("num_hidden_layers"))
    )
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        max_positions=config.integer("max_position_embeddings"),
        norm=NormSpec("rms", config.number("rms_norm_eps", 1e-6)),
        layers=tuple(layers),
        tied_head=config.flag("tie_word_embeddings", False),
        num_drafters=config.count("num_nextn_predict_layers", 0),
    )


def _groups(config: HfConfig, method: str, methods: tuple[str, ...]) -> tuple[int, int]:
    """How many groups of experts there are, and how many of them a token takes."""
    if method not in methods:
        raise ModelError(f"config.json: topk_method {method!r} is not supported; supported are {', '.join(methods)}.")
    groups = 1 if method == "greedy" else config.integer("n_group", 1)
    return groups, 1 if groups == 1 else config.integer("topk_group", groups)


def _check_scoring(config: HfConfig, scoring: str) -> None:
    found = config.text("scoring_func", scoring)
    if found != scoring:
        raise ModelError(f"config.json: scoring_func {found!r} is not supported for this architecture; {scoring} is.")


def spec_v2(config: HfConfig) -> ModelSpec:
    _check_scoring(config, "softmax")
    if config.flag("norm_topk_prob", False):  # the published code then leaves the factor out, transformers the norm
        raise ModelError("config.json: norm_topk_prob true is not supported for this architecture.")
    method = config.text("topk_method", "greedy")
    groups, top_groups = _groups(config, method, ("greedy", "group_limited_greedy"))
    factor = config.number("routed_scaling_factor", 1.0)
    routing = RoutingSpec("softmax", renormalize=False, factor=factor, groups=groups, top_groups=top_groups)
    return _decoder(config, routing, interleaved=True, first_dense=0)


def spec_v3(config: HfConfig) -> ModelSpec:
    _check_scoring(config, "sigmoid")
    groups, top_groups = _groups(config, config.text("topk_method", "noaux_tc"), ("noaux_tc",))
    routing = RoutingSpec(
        "sigmoid",
        renormalize=config.flag("norm_topk_prob", True),
        factor=config.number("routed_scaling_factor", 2.5),
        groups=groups,
        top_groups=top_groups,
        corrected=True,
    )
    return _decoder(config, routing, config.flag("rope_interleave", True), first_dense=3)


V2 = Family("deepseek_v2", ("DeepseekV2ForCausalLM",), spec_v2, NAMES)
V3 = Family("deepseek_v3", ("DeepseekV3ForCausalLM",), spec_v3, NAMES, tool_parser="deepseekv3")
