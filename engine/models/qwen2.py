"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and maybe a sliding window over the upper layers."""

from __future__ import annotations

from sgl.engine.base.errors import ModelError
from sgl.engine.models import llama
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.models.pooling import embeds, scores, variant
from sgl.engine.nn.spec import DenseSpec, ModelSpec, PoolingSpec

_SLIDING = {"full_attention": False, "sliding_attention": True}


def windows(config: HfConfig) -> list[int | None]:
    """The window of every layer: as ``layer_types`` says, or else from layer ``max_window_layers`` on."""
    num_layers = config.integer("num_hidden_layers")
    if not config.flag("use_sliding_window", False):
        return [None] * num_layers
    window = config.optional_integer("sliding_window", 4096)
    first = config.count("max_window_layers", 28)
    types = config.texts("layer_types")
    if types is None:
        types = ["full_attention" if i < first else "sliding_attention" for i in range(num_layers)]
    return windows_by_type(config, types, window)


def windows_by_type(config: HfConfig, types: list[str], window: int | None) -> list[int | None]:
    """The window of every layer as ``layer_types`` says."""
    num_layers = config.integer("num_hidden_layers")
    unknown = set(types) - set(_SLIDING)
    if unknown or len(types) != num_layers:
        raise ModelError(
            f"config.json: layer_types must name one of {', '.join(_SLIDING)} for each of {num_layers} layers."
        )
    return [window if _SLIDING[kind] else None for kind in types]


def spec(config: HfConfig) -> ModelSpec:
    return llama.decoder(config, num_kv_heads=32, qkv_bias=True, windows=windows(config))


def _reward(config: HfConfig) -> PoolingSpec:
    """Two layers over the last token's state, as in Qwen's own reward models."""
    layers = (DenseSpec("score.0", config.integer("hidden_size"), activation="relu"), DenseSpec("score.2", 1))
    return PoolingSpec("classify", "last", layers)


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), spec, llama.NAMES, tool_parser="qwen25")
EMBEDDER = variant(FAMILY, "embedding", ("Qwen2Model",), embeds("last"))
CLASSIFIER = variant(FAMILY, "classifier", ("Qwen2ForSequenceClassification",), scores("score"))
REWARD = variant(FAMILY, "reward", ("Qwen2ForRewardModel",), _reward)
