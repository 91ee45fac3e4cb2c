"""DeepSeek V2 and V3: attention over latents, experts in all but the first layers beside shared ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a configuration means that leaves a field out: the default of transformers' class; None for none."""

    first_k_dense_replace: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int | None
    moe_intermediate_size: int


_V2_DEFAULTS, _V3_DEFAULTS = _Defaults(0, 64, 2, None, 1407), _Defaults(3, 256, 1, 8, 2048)


def _decoder(config: HfConfig, routing: RoutingSpec, interleaved: bool, defaults: _Defaults) -> ModelSpec:
    activation = config.text("hidden_act", "silu")
    size = config.integer("moe_intermediate_size", defaults.moe_intermediate_size)
    num_shared = _num_shared(config, defaults.n_shared_experts)
    moe = MoeSpec(
        config.integer("n_routed_experts", defaults.n_routed_experts),
        config.integer("num_experts_per_tok", defaults.num_experts_per_tok),
        MlpSpec(size, activation),
        routing,
        MlpSpec(size * num_shared, activation) if num_shared else None,
    )
    dense = MlpSpec(config.integer("intermediate_size"), activation, bias=config.flag("mlp_bias", False))
    attention, every = _attention(config, interleaved), config.integer("moe_layer_freq", 1)
    first = config.count("first_k_dense_replace", defaults.first_k_dense_replace)
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


def _num_shared(config: HfConfig, default: int) -> int:
    """How many experts every token takes; the published code takes null for none."""
    is_null = config.optional_number("n_shared_experts", default) is None
    return 0 if is_null else config.count("n_shared_experts", default)


def _check_method(config: HfConfig, *methods: str) -> str:
    """How experts are chosen; the first way is the default."""
    method = config.text("topk_method", methods[0])
    if method not in methods:
        raise ModelError(f"config.json: topk_method {method!r} is not supported; supported are {', '.join(methods)}.")
    return method


def _groups(config: HfConfig, groups: int | None, top_groups: int | None) -> tuple[int, int]:
    """How many groups of experts there are, and how many of them a token takes, with the defaults of both."""
    found = config.integer("n_group", groups)
    return found, 1 if found == 1 else config.integer("topk_group", top_groups)


def _check_scoring(config: HfConfig, scoring: str) -> None:
    found = config.text("scoring_func", scoring)
    if found != scoring:
        raise ModelError(f"config.json: scoring_func {found!r} is not supported for this architecture; {scoring} is.")


def spec_v2(config: HfConfig) -> ModelSpec:
    _check_scoring(config, "softmax")
    if config.flag("norm_topk_prob", False):  # the published code then leaves the factor out, transformers the norm
        raise ModelError("config.json: norm_topk_prob true is not supported for this architecture.")
    is_limited = _check_method(config, "greedy", "group_limited_greedy") != "greedy"
    groups, top_groups = _groups(config, None, None) if is_limited else (1, 1)
    factor = config.number("routed_scaling_factor", 1.0)
    routing = RoutingSpec("softmax", renormalize=False, factor=factor, groups=groups, top_groups=top_groups)
    return _decoder(config, routing, interleaved=True, defaults=_V2_DEFAULTS)


def spec_v3(config: HfConfig) -> ModelSpec:
    _check_scoring(config, "sigmoid")
    _check_method(config, "noaux_tc")
    groups, top_groups = _groups(config, 8, 4)
    routing = RoutingSpec(
        "sigmoid",
        renormalize=config.flag("norm_topk_prob", True),
        factor=config.number("routed_scaling_factor", 2.5),
        groups=groups,
        top_groups=top_groups,
        corrected=True,
    )
    return _decoder(config, routing, config.flag("rope_interleave", True), _V3_DEFAULTS)


V2 = Family("deepseek_v2", ("DeepseekV2ForCausalLM",), spec_v2, NAMES)
V3 = Family("deepseek_v3", ("DeepseekV3ForCausalLM",), spec_v3, NAMES, tool_parser="deepseekv3")
