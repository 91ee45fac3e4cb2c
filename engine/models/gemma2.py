"""Gemma 2: norms on both sides of attention and feed-forward, bounded scores, a window on every second layer."""

from __future__ import annotations

from dataclasses import replace

from sgl.engine.models import llama, qwen2
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.models.pooling import embeds, scores, variant
from sgl.engine.nn.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec

NAMES = replace(
    llama.NAMES,
    attention_out_norm="model.layers.{}.post_attention_layernorm",
    mlp_norm="model.layers.{}.pre_feedforward_layernorm",
    mlp_out_norm="model.layers.{}.post_feedforward_layernorm",
)


def spec(config: HfConfig) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    head_dim = config.integer("head_dim", 256)
    base = llama.decoder(
        config, num_kv_heads=4, head_dim=head_dim, qkv_bias=bias, out_bias=bias, windows=_windows(config)
    )
    scale = config.number("query_pre_attn_scalar", float(head_dim)) ** -0.5
    softcap = config.optional_number("attn_logit_softcapping", 50.0)
    mlp = MlpSpec(config.integer("intermediate_size"), config.text("hidden_activation", "gelu_pytorch_tanh"))
    layers = (LayerSpec(replace(layer.attention, scale=scale, softcap=softcap), mlp) for layer in base.layers)
    return replace(
        base,
        norm=NormSpec("rms", base.norm.eps, offset=1.0),
        norms="sandwich",
        layers=tuple(layers),
        tied_head=config.flag("tie_word_embeddings", True),
        embedding_scale=base.hidden_size**0.5,
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0),
    )


def _windows(config: HfConfig) -> list[int | None]:
    """As ``layer_types`` says; in older checkpoints the even layers have the window."""
    window = config.optional_integer("sliding_window", 4096)
    types = config.texts("layer_types")
    if types is None:
        return [window if index % 2 == 0 else None for index in range(config.integer("num_hidden_layers"))]
    return qwen2.windows_by_type(config, types, window)


FAMILY = Family("gemma2", ("Gemma2ForCausalLM",), spec, NAMES)
EMBEDDER = variant(FAMILY, "embedding", ("Gemma2Model",), embeds("last"))
CLASSIFIER = variant(FAMILY, "classifier", ("Gemma2ForSequenceClassification",), scores("score"))
