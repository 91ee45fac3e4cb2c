"""Qwen 3 with experts in place of most feed-forwards."""

from __future__ import annotations

from dataclasses import replace

from sgl.engine.models import qwen2_moe, qwen3
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.nn.spec import MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAMES = replace(qwen2_moe.NAMES, q_norm=qwen3.NAMES.q_norm, k_norm=qwen3.NAMES.k_norm)


def spec(config: HfConfig) -> ModelSpec:
    moe = MoeSpec(
        config.integer("num_experts", config.integer("num_local_experts", 128)),  # by age of the checkpoint
        config.integer("num_experts_per_tok", 8),
        MlpSpec(config.integer("moe_intermediate_size", 768), config.text("hidden_act", "silu")),
        RoutingSpec(renormalize=config.flag("norm_topk_prob", False)),
    )
    return qwen2_moe.with_experts(qwen3.spec(config), config, moe)


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), spec, NAMES, tool_parser="qwen25", reasoning_parser="qwen3")
