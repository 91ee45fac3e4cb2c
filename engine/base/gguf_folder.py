"""Makes of a GGUF file the directory that the rest of sgl reads: config.json, tokenizer files, a link to the weights.

The directory lies in the cache under a name that changes with the file, so it is made once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sgl.engine.base import env, gguf
from sgl.engine.base.errors import ModelError
from sgl.engine.base.gguf import Gguf
from sgl.engine.base.gguf_tokenizer import tokenizer_files

WEIGHTS = "model.gguf"
_FORM = 1  # of these directories: counted up when they change
_ROPE_FREQS = "rope_freqs.weight"

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Metadata behind the architecture's name, and what config.json calls it."""


def find(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one in a directory without config.json."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            f"--model-path {path} holds {len(files)} GGUF files; name one of them, such as {files[0].name}."
        )
    return files[0] if files else None


def unfold(file: Path) -> Path:
    """The directory for a file.

    Raises:
        ModelError: the file cannot be read, or its architecture or tokenizer is not supported.
    """
    status = file.stat()
    facts = f"{_FORM} {file.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = env.cache_dir() / "gguf" / f"{file.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    if (folder / "config.json").is_file():
        return folder
    header = gguf.read(file)
    files = {"config.json": config_of(header), **tokenizer_files(header)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name, content in files.items():
            (made / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        (made / WEIGHTS).symlink_to(file.resolve())
        made.replace(folder)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if not (folder / "config.json").is_file():  # else another process was faster
            raise ModelError(f"{folder} cannot be written: {error}.") from None
    return folder


def config_of(header: Gguf) -> dict[str, Any]:
    """config.json as transformers would have it."""
    metadata = header.metadata
    kind = metadata.get("general.architecture")
    if kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"{header.path}: the GGUF architecture {kind!r} is not supported; supported: {known}.")
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "gguf"},
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
    }
    for name, field in _FIELDS.items():
        if (value := metadata.get(f"{kind}.{name}")) is not None:
            config[field] = value
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{header.path} has no token_embd.weight.")
    config["vocab_size"] = embedding.shape[0]
    config["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    ends = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    config["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None)) or None
    config |= _rope(header, kind)
    if kind == "gemma2":
        config |= _gemma2(config, metadata)
    return config


def _rope(header: Gguf, kind: str) -> dict[str, Any]:
    metadata, scaling = header.metadata, f"{kind}.rope.scaling"
    scheme = metadata.get(f"{scaling}.type")
    rotated, head_dim = metadata.get(f"{kind}.rope.dimension_count"), metadata.get(f"{kind}.attention.key_length")
    if rotated is not None and head_dim is not None and rotated != head_dim:
        raise ModelError(f"{header.path}: {kind}.rope.dimension_count {rotated} of {head_dim} is not supported.")
    if _ROPE_FREQS in header.tensors:
        return {"rope_scaling": _llama3_scaling(header)}
    if scheme in (None, "none"):
        return {}
    if scheme not in ("linear", "yarn"):
        raise ModelError(f"{header.path}: {scaling}.type {scheme!r} is not supported; supported are linear and yarn.")
    found = {"rope_type": scheme, "factor": metadata.get(f"{scaling}.factor")}
    if (original := metadata.get(f"{scaling}.original_context_length")) is not None:
        found["original_max_position_embeddings"] = original
    return {"rope_scaling": found}


def _llama3_scaling(header: Gguf) -> dict[str, Any]:
    """Llama 3.1's scaling, of which a file keeps only what every frequency is divided by: the last one by the factor.

    The other numbers are those of all its models; `sgl.engine.models.gguf` checks that they lead to the same divisors.
    """
    tensor = header.tensors[_ROPE_FREQS]
    with header.path.open("rb") as file:
        file.seek(tensor.offset + (tensor.shape[-1] - 1) * 4)
        factor = memoryview(file.read(4)).cast("f")[0]
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _gemma2(config: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata leaves out: only the largest of the three models scales scores by another size."""
    heads, size = config.get("num_attention_heads", 1), config.get("hidden_size", 1)
    is_largest = config.get("num_hidden_layers") == 46
    return {
        "query_pre_attn_scalar": size // heads if is_largest else config.get("head_dim", 256),
        "sliding_window": metadata.get("gemma2.attention.sliding_window", 4096),
        "hidden_activation": "gelu_pytorch_tanh",
    }
