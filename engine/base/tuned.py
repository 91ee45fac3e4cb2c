"""Finds the values that `sgl bench tune` wrote for a machine and a model's shape; measures and writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sgl.engine.base import env
from sgl.engine.base.config import BY_NAME, OPTIONS, EngineConfig, Given, text_config
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import Machine, describe, name_of
from sgl.engine.base.options import Value

logger = logging.getLogger(__name__)

KEYS = ("kernel.cpu_threads", "kernel.cpu_pin", "schedule.chunked_prefill_size", "cache.page_size")
"""The options that a profile may set: they change how fast a model runs, and no answer."""

_FORMATS = tuple(item for item in OPTIONS if item.name in ("dtype", "quantization", "kv_cache_dtype"))
_SHAPE = (
    *("model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads"),
    *("n_head", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "sliding_window"),
    *("kv_lora_rank", "q_lora_rank", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok"),
)
"""What of config.json decides how much a step computes."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of tuned values.

    Args:
        machine: what `machine.describe` says.
        shape: of the model, and the formats it is kept in.
        values: by ``group.field``; an option that is not there keeps its default.
        gain: how many times as fast as with the defaults, measured while tuning.
        sgl_version: of the engine that was tuned.
        time: when, ISO 8601.
    """

    machine: dict[str, str | int | float]
    shape: dict[str, Any]
    values: dict[str, int | bool]
    gain: float
    sgl_version: str
    time: str


def folder() -> Path:
    """Where profiles are looked up."""
    return env.cache_dir() / "profiles"


def shape_of(config: EngineConfig, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The model as far as it decides its speed; ``config`` is resolved."""
    hf = text_config(hf_config, config.model.json_model_override_args)
    parts = {name: hf[name] for name in _SHAPE if hf.get(name) is not None}
    return {**parts, **{item.name: config.get(item.key) for item in _FORMATS if config.get(item.key) is not None}}


def place_of(config: EngineConfig, hf_config: Mapping[str, Any], machine: Machine) -> Path:
    """``machine/shape.json``, relative to a folder of profiles."""
    name = name_of(shape_of(config, hf_config))
    return Path(str(describe(machine)["fingerprint"])) / f"{name}.json"


def read(config: EngineConfig, hf_config: Mapping[str, Any], machine: Machine) -> dict[str, Given]:
    """The tuned values for this model on this machine, if there are any. A file that cannot be used is warned of."""
    path = folder() / place_of(config, hf_config, machine)
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
        return {key: Given(_checked(key, value), "tuned", str(path)) for key, value in profile.values.items()}
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        logger.warning("Tuned values are ignored: %s cannot be used: %s", path, error)
        return {}


def _checked(key: str, value: object) -> Value:
    if key not in KEYS:
        raise ConfigError(f"'{key}' is not an option that is tuned.")
    return BY_NAME[key].parse(value, key)
