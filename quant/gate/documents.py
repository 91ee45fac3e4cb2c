"""The files of a checkpoint beside its tensors: config.json, evidence, and what is copied; writes none of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import sgl
from sgl.engine.base import hub
from sgl.engine.base.errors import ConfigError
from sgl.quant.gate.criteria import Verdict
from sgl.quant.recipes.plan import Plan, to_json
from sgl.quant.recipes.report import LayerError

_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_NOT_COPIED = ("config.json", hub.EVIDENCE_FILE, hub.CANARY_FILE, "quantization_config.json")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_MOST_BYTES = 256 << 20
_PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors", "llmcompressor")


class DataFacts(msgspec.Struct, frozen=True):
    """Text by its tokens: equal hashes are equal tokens."""

    name: str
    hash: str
    num_sequences: int
    num_tokens: int


class VerdictFacts(msgspec.Struct, frozen=True):
    """A limit, what was measured, and whether it holds; see `criteria.Verdict`."""

    criterion: str
    value: float
    low: float | None
    high: float | None
    passed: bool
    reason: str


class GateFacts(msgspec.Struct, frozen=True):
    """What the checkpoint was measured to be worth.

    Args:
        looks: how often candidates were held against this data: more than once only after --auto.
    """

    data: DataFacts
    verdicts: list[VerdictFacts]
    divergence: dict[str, Any]
    tasks: dict[str, Any]
    looks: int = 1


class Evidence(msgspec.Struct, frozen=True):
    """How a checkpoint was made: the content of the file beside its config.json."""

    format: int
    time: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    source: dict[str, str]
    calibration: DataFacts | None
    size_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    layers: list[LayerError]
    gate: GateFacts | None = None


def facts_of(verdicts: Sequence[Verdict]) -> list[VerdictFacts]:
    """For the record."""
    return [
        VerdictFacts(str(v.criterion), v.measured.value, v.measured.low, v.measured.high, v.passed, v.reason)
        for v in verdicts
    ]


def copied(folder: Path) -> dict[str, bytes]:
    """Tokenizer, chat template, generation config, code and licence of the original."""
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in _NOT_COPIED or path.name.endswith(".index.json"):
            continue
        if path.suffix in _SUFFIXES or path.name.upper().startswith(_LICENCES):
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError(f"{path} is larger than {_MOST_BYTES >> 20} MiB; it belongs to no checkpoint.")
            found[path.name] = path.read_bytes()
    return found


def all_of(plan: Plan, evidence: Evidence) -> dict[str, bytes]:
    """Every file but those of tensors."""
    config = {**plan.source.config, "quantization_config": plan.quantization_config}
    return {
        **copied(plan.source.folder),
        hub.EVIDENCE_FILE: to_json(msgspec.to_builtins(evidence)),
        "config.json": to_json(config),
    }


def versions() -> dict[str, str]:
    """Of what had a part in the result."""
    found = {"sgl": sgl.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_evidence(folder: Path) -> Evidence:
    """What a checkpoint says of its own making.

    Raises:
        ConfigError: it says nothing, or nothing readable.
    """
    path = folder / hub.EVIDENCE_FILE
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no directory; name one that `sgl quantize` wrote.", param="DIR")
    if not path.is_file():
        raise ConfigError(f"{folder} has no {hub.EVIDENCE_FILE}: it was not written by `sgl quantize`.", param="DIR")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evidence)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", param="DIR") from None
