"""Writes GGUF files as ggml's documentation describes them, from checkpoints of transformers; knows nothing of sgl."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30

_PLACES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA2 = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind = value(item[0])[:4] if item else struct.pack("<I", 4)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(item)) + b"".join(value(part)[4:] for part in item)


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> Path:
    """Tensors: type, shape (outermost first) and bytes by name."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(name) + value(item) for name, item in metadata.items())
    offset = 0
    for name, (kind, shape, data) in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + sizes + struct.pack("<IQ", kind, offset)
        offset += -(-len(data) // 32) * 32
    body = b"".join(data + bytes(-len(data) % 32) for _, _, data in tensors.values())
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def blocks(weight: Tensor, kind: int) -> tuple[bytes, Tensor]:
    """A weight in a type, and the numbers that were stored."""
    if kind == F32:
        return weight.float().numpy().tobytes(), weight.float()
    if kind == F16:
        return weight.half().numpy().tobytes(), weight.half().float()
    if kind == BF16:
        return weight.bfloat16().view(torch.int16).numpy().tobytes(), weight.bfloat16().float()
    parts = weight.float().numpy().reshape(-1, 32)
    most = {Q4_0: 7, Q8_0: 127}[kind]
    scales = (np.abs(parts).max(1, keepdims=True) / most).astype(np.float16)
    steps = np.clip(np.round(parts / np.maximum(scales.astype(np.float32), 1e-8)), -most, most).astype(np.int8)
    stored = torch.from_numpy(steps.astype(np.float32) * scales.astype(np.float32)).view(weight.shape)
    if kind == Q8_0:
        return b"".join(s.tobytes() + q.tobytes() for s, q in zip(scales, steps, strict=True)), stored
    halves = (steps + 8).astype(np.uint8)
    packed = halves[:, :16] | halves[:, 16:] << 4
    return b"".join(s.tobytes() + q.tobytes() for s, q in zip(scales, packed, strict=True)), stored


def convert(source: Path, path: Path, kind: int, pre: str = "default") -> dict[str, Tensor]:
    """A checkpoint of `make_checkpoint` as GGUF; returns what the stored weights are, by transformers' names."""
    config = json.loads((source / "config.json").read_text())
    family = config["model_type"]
    arch = {"mistral": "llama"}.get(family, family)
    places = _PLACES | (_GEMMA2 if family == "gemma2" else {})
    stored, tensors = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        module, _, suffix = name.rpartition(".")
        layer, _, part = module.removeprefix("model.layers.").partition(".")
        place = f"blk.{layer}.{places[part]}" if module.startswith("model.layers.") else places[module]
        raw = weight.float()
        if arch == "llama" and place.endswith(("attn_q", "attn_k")):
            heads = config["num_attention_heads" if place.endswith("q") else "num_key_value_heads"]
            raw = raw.view(heads, 2, -1, *raw.shape[1:]).transpose(1, 2).reshape(raw.shape)
        if family == "gemma2" and place.endswith("norm"):
            raw = raw + 1
        used = kind if raw.dim() == 2 and raw.shape[1] % 32 == 0 else F32
        data, exact = blocks(raw.contiguous(), used)
        if arch == "llama" and place.endswith(("attn_q", "attn_k")):
            exact = exact.view(heads, -1, 2, *raw.shape[1:]).transpose(1, 2).reshape(raw.shape)
        stored[name] = exact - 1 if family == "gemma2" and place.endswith("norm") else exact
        tensors[f"{place}.{suffix}"] = (used, tuple(raw.shape), data)
    write(path, {**_metadata(config, arch), **_tokenizer(source, pre)}, tensors)
    return stored


def _metadata(config: dict[str, Any], arch: str) -> dict[str, Any]:
    fields = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in config:
            fields[name] = float(config[name])
    if "attn_logit_softcapping" in config:
        fields["attention.sliding_window"] = config["sliding_window"]
    return {"general.architecture": arch, **{f"{arch}.{name}": item for name, item in fields.items()}}


def _tokenizer(source: Path, pre: str) -> dict[str, Any]:
    described = json.loads((source / "tokenizer.json").read_text())
    settings = json.loads((source / "tokenizer_config.json").read_text())
    added = {token["content"]: token["id"] for token in described["added_tokens"]}
    ids = {**described["model"]["vocab"], **added}
    tokens = sorted(ids, key=lambda token: ids[token])
    named = {"bos": settings.get("bos_token"), "eos": settings.get("eos_token")}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in described["model"]["merges"]],
        **{f"tokenizer.ggml.{name}_token_id": ids[token] for name, token in named.items() if token is not None},
        "tokenizer.chat_template": settings["chat_template"],
    }
