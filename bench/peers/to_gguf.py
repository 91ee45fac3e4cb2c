"""A checkpoint of the shapes here as a bf16 GGUF file, for llama.cpp; runs where ``gguf`` and numpy are installed.

Imports nothing of this project: ``python to_gguf.py CHECKPOINT OUT.gguf``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ROOT = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
SPECIAL, ORDINARY = 3, 1  # kinds of tokens in GGUF


def name_of(name: str) -> str:
    """The GGUF name of a weight."""
    if name in ROOT:
        return ROOT[name]
    _, _, number, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{number}.{LAYER[part]}.{kind}"


def interleave(weight: Any, heads: int) -> Any:
    """Rows of q and k of a llama as GGUF has them: the two halves of each head in turns."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def convert(source: Path, target: str) -> None:
    """Writes the file."""
    import gguf
    import numpy as np

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, config["model_type"])
    _describe(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    _add_tokenizer(writer, source, config)
    with (source / "model.safetensors").open("rb") as file:
        head_len = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(head_len))
    data = np.memmap(source / "model.safetensors", np.uint8, "r", 8 + head_len)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, entry in head.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        weight, target_name = data[begin:end].view(np.uint16).reshape(entry["shape"]), name_of(name)
        part = target_name.split(".")[-2]
        if config["model_type"] == "llama" and part in heads:
            weight = interleave(weight, heads[part])
        if weight.ndim == 1:  # norms and biases are float32 there
            writer.add_tensor(target_name, (weight.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = np.ascontiguousarray(weight).view(np.uint8)
            writer.add_tensor(target_name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name(config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, source: Path, config: dict[str, Any]) -> None:
    content = json.loads((source / "tokenizer.json").read_text())
    special = {item["content"]: item["id"] for item in content["added_tokens"]}
    ids = {**content["model"]["vocab"], **special}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([SPECIAL if token in special else ORDINARY for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(json.loads((source / "tokenizer_config.json").read_text())["chat_template"])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2])
