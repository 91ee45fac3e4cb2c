"""Guesses the memory budget of a model from its files alone; the engine settles it when the weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl.engine.base.budget import Budget, solve
from sgl.engine.base.config import EngineConfig, Machine, text_config
from sgl.engine.base.loaded_size import ITEM_BYTES, loaded_bytes

_SPARE = 1.1
"""Scales, padding, and what else a loaded model has beside its numbers."""


def estimate(config: EngineConfig, hf_config: Mapping[str, Any], folder: Path, machine: Machine) -> Budget | None:
    """What `budget.solve` will about say; None if the folder has no weights or config.json does not tell enough.

    Raises:
        ConfigError: it will not fit.
    """
    hf = text_config(hf_config, config.model.json_model_override_args)
    dtype_bytes = ITEM_BYTES[config.model.dtype]
    weight_bytes = loaded_bytes(folder, config, hf_config)
    layers, heads, hidden, vocab = (
        hf.get(name) or hf.get(other)
        for name, other in (
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("hidden_size", "n_embd"),
            ("vocab_size", "vocab_size"),
        )
    )
    if not weight_bytes or not (layers and heads and hidden and vocab):
        return None
    kv_heads, head_dim = hf.get("num_key_value_heads") or heads, hf.get("head_dim") or hidden // heads
    kept = 2 * kv_heads * head_dim
    if hf.get("kv_lora_rank"):  # heads share one latent and one rotated key
        kept = hf["kv_lora_rank"] + (hf.get("qk_rope_head_dim") or 0)
    chunk = config.schedule.chunked_prefill_size or -1
    step = chunk if chunk > 0 else max(config.schedule.max_prefill_tokens, config.model.context_length or 0)
    logits = 3 * (config.schedule.max_running_requests or 1) * vocab * 4
    return solve(
        config,
        machine,
        weight_bytes=int(weight_bytes * _SPARE),
        kv_bytes_per_page=config.cache.page_size * layers * kept * dtype_bytes,
        activation_bytes=step * 18 * hidden * dtype_bytes + logits,
    )
