"""GPT-2: learned positions, layer norms, biases everywhere, linear weights stored as [in, out]."""

from __future__ import annotations

from sgl.engine.models.family import Family, HfConfig
from sgl.engine.nn.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, WeightNames

NAMES = WeightNames(
    embedding="transformer.wte",
    positions="transformer.wpe",
    head="lm_head",
    norm="transformer.ln_f",
    attention_norm="transformer.h.{}.ln_1",
    qkv=("transformer.h.{}.attn.c_attn",),
    attention_out="transformer.h.{}.attn.c_proj",
    mlp_norm="transformer.h.{}.ln_2",
    up=("transformer.h.{}.mlp.c_fc",),
    down="transformer.h.{}.mlp.c_proj",
    transposed=True,
    # The first checkpoints were saved without the head, so without the prefix, and with the causal mask.
    renames=((r"^(?=(h\.|wte\.|wpe\.|ln_f\.))", "transformer."),),
    ignored=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)


def spec(config: HfConfig) -> ModelSpec:
    hidden_size, num_heads, num_layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
    head_dim = hidden_size // num_heads
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_depth = config.flag("scale_attn_by_inverse_layer_idx", False)
    mlp = MlpSpec(
        config.integer("n_inner", 4 * hidden_size),
        config.text("activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    layers = []
    for index in range(num_layers):
        layer_scale = scale / (index + 1) if by_depth else scale
        attention = AttentionSpec(num_heads, num_heads, head_dim, layer_scale, qkv_bias=True, out_bias=True)
        layers.append(LayerSpec(attention, mlp))
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        max_positions=config.integer("n_positions"),
        norm=NormSpec("layer", config.number("layer_norm_epsilon", 1e-5)),
        layers=tuple(layers),
        tied_head=config.flag("tie_word_embeddings", True),
        learned_positions=True,
    )


FAMILY = Family("gpt2", ("GPT2LMHeadModel",), spec, NAMES)
