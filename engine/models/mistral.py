"""Mistral: Llama with a sliding window over all layers, if config.json names one."""

from __future__ import annotations

from sgl.engine.models import llama
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.models.pooling import embeds, scores, variant
from sgl.engine.nn.spec import ModelSpec


def spec(config: HfConfig) -> ModelSpec:
    windows = [config.optional_integer("sliding_window", 4096)] * config.integer("num_hidden_layers")
    return llama.decoder(config, num_kv_heads=8, windows=windows)


FAMILY = Family("mistral", ("MistralForCausalLM",), spec, llama.NAMES, tool_parser="mistral")
EMBEDDER = variant(FAMILY, "embedding", ("MistralModel",), embeds("last"))
CLASSIFIER = variant(FAMILY, "classifier", ("MistralForSequenceClassification",), scores("score"))
