"""Which family describes a checkpoint; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl.engine.base.errors import ModelError
from sgl.engine.models import (
    bert,
    deepseek,
    gemma2,
    gpt2,
    internlm2,
    llama,
    mistral,
    mixtral,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
)
from sgl.engine.models.family import Family

FAMILIES: tuple[Family, ...] = (
    *(llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, gemma2.FAMILY, internlm2.FAMILY, gpt2.FAMILY),
    *(mixtral.FAMILY, qwen2_moe.FAMILY, qwen3_moe.FAMILY, deepseek.V2, deepseek.V3),
    *(llama.EMBEDDER, mistral.EMBEDDER, qwen2.EMBEDDER, qwen3.EMBEDDER, gemma2.EMBEDDER, internlm2.EMBEDDER),
    *(llama.CLASSIFIER, mistral.CLASSIFIER, qwen2.CLASSIFIER, qwen3.CLASSIFIER, gemma2.CLASSIFIER),
    *(qwen2.REWARD, internlm2.REWARD),
    *(bert.FAMILY, bert.CLASSIFIER, roberta.FAMILY, roberta.CLASSIFIER),
)

_BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family of the first known name in ``architectures``.

    Raises:
        ModelError: there is none.
    """
    names = hf_config.get("architectures") or []
    if not isinstance(names, list):
        raise ModelError(f"config.json: architectures must be a list of names, got {names!r}.")
    for name in names:
        if name in _BY_ARCHITECTURE:
            return _BY_ARCHITECTURE[name]
    known = ", ".join(_BY_ARCHITECTURE)
    if not names:
        raise ModelError(f"config.json names no architectures; supported are {known}.")
    raise ModelError(f"architecture {names[0]} is not supported; supported are {known}.")
