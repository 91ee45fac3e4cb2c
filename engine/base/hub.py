"""Finds a model's files: a local directory as it is, a Hugging Face Hub id through its cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sgl.engine.base import gguf_folder
from sgl.engine.base.errors import ModelError

TOKENIZER_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
EVIDENCE_FILE = "quantization_evidence.json"
"""How a checkpoint was quantized and what it was measured to be worth, if `sgl quantize` wrote it."""
CANARY_FILE = "sgl_canary.json"
"""What a short prompt's scores have to be, if `sgl doctor model --record-canary` wrote it."""


def demo_model() -> Path:
    """The directory of the model that ships with sgl."""
    return Path(str(resources.files("sgl.assets"))) / "demo"


def locate(model: str, files: Sequence[str], revision: str = "", download_dir: str = "") -> Path:
    """The directory that holds a model's files, downloading those that match ``files`` if ``model`` is a Hub id.

    A GGUF file counts as the directory that `gguf_folder` makes of it.

    Raises:
        ModelError: no such directory or repository, no access, or no network.
    """
    path = Path(model).expanduser()
    if model.strip() and path.exists():
        if (file := gguf_folder.find(path)) is not None:
            return gguf_folder.unfold(file)
        if path.is_dir():
            return path
        raise ModelError(f"--model-path {model}: this is neither a directory nor a GGUF file.")
    if not model.strip() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"--model-path {model}: there is no such directory.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            model, revision=revision or None, cache_dir=download_dir or None, allow_patterns=list(files)
        )
    except HFValidationError:
        raise ModelError(f"--model-path {model}: neither a directory nor a Hugging Face Hub id.") from None
    except Exception as error:  # noqa: BLE001 - the Hub client raises errors of three libraries
        raise ModelError(_hub_problem(model, error)) from None
    return Path(found)


def read_config(model: str, revision: str = "", download_dir: str = "") -> dict[str, Any]:
    """The model's config.json.

    Raises:
        ModelError: it cannot be found or is not a JSON object.
    """
    path = locate(model, ("config.json",), revision, download_dir) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"--model-path {model}: there is no config.json in it.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return content


def read_evidence(model: str, revision: str = "", download_dir: str = "") -> Any:
    """What the checkpoint says of its quantization, from this machine's files only; None if it says nothing."""
    try:
        found: object = Path(model).expanduser() / EVIDENCE_FILE
        if not Path(model).expanduser().is_dir():
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(model, EVIDENCE_FILE, download_dir or None, revision or None)
        path = Path(found) if isinstance(found, str | Path) else None
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    except (OSError, ValueError):
        return None


def _hub_problem(model: str, error: Exception) -> str:
    """One sentence for what went wrong at the Hub."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "GatedRepoError" in names:
        return f"{model} is gated: accept its licence on huggingface.co and set HF_TOKEN."
    if "RevisionNotFoundError" in names:
        return f"{model} has no such --revision on the Hugging Face Hub."
    if "RepositoryNotFoundError" in names:
        return (
            f"--model-path {model}: no such directory here and no such model on the Hub (or HF_TOKEN may not see it)."
        )
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout"}:
        return (
            f"{model} is not in the cache and the Hugging Face Hub cannot be reached; pass a local directory instead."
        )
    return f"{model} could not be fetched from the Hugging Face Hub: {type(error).__name__}: {error}".rstrip(".") + "."
