"""Makes tiny random checkpoints, with a tokenizer, that transformers itself wrote; knows nothing of sgl.

Every parameter is random, norms and biases included (transformers starts them at one and zero, which would hide a norm
or a bias that is never applied), and large enough that attention and the feed-forward move the greedy token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2")
MOE_FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
LATENT_FAMILIES = ("deepseek_v2", "deepseek_v3")

VOCAB_SIZE = 320
BOS, EOS, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"

_CORPUS = (
    "The quick brown fox jumps over the lazy dog. Paris is the capital of France, and Rome is the capital of Italy.\n"
    "Once upon a time there was a small model that learned to count: one, two, three, four, five, six, seven.\n"
    'A tool is called with {"name": "get_weather", "arguments": {"city": "Berlin"}} and answers in JSON.\n'
)

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

_LATENT = {
    **_DECODER,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 16,
    "v_head_dim": 28,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}

_ENCODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "type_vocab_size": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "mistral": {**_DECODER, "head_dim": 24, "sliding_window": None},
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 24},
    "gemma2": {
        **_DECODER,
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 30.0,
    },
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_DECODER, **_EXPERTS, "shared_expert_intermediate_size": 56},
    "qwen3_moe": {**_DECODER, **_EXPERTS, "head_dim": 24, "norm_topk_prob": True},
    "deepseek_v2": {**_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 3.0},
    "deepseek_v3": {**_LATENT, "num_nextn_predict_layers": 0},
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": 98, "pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {**_ENCODER, "max_position_embeddings": 98, "pad_token_id": 1, "type_vocab_size": 1},
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}


def make_checkpoint(
    family: str,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool | None = None,
    sharded: bool = False,
    tokenizer: bool = True,
    seed: int = 0,
    head: str = "CausalLM",
    **overrides: Any,
) -> Path:
    """Writes a random checkpoint, a few hundred KB; returns the path.

    Args:
        family: one of `FAMILIES`, `MOE_FAMILIES` or `LATENT_FAMILIES`, or an encoder.
        dtype: of the stored tensors, also named in config.json.
        tied: overrides tie_word_embeddings.
        sharded: several safetensors files with an index.
        tokenizer: also write a byte-level BPE tokenizer of `VOCAB_SIZE` entries (ids 0-3: BOS, EOS, IM_START, IM_END)
            with a ChatML template.
        head: of transformers' class: CausalLM, SequenceClassification, or empty for the body alone.
        overrides: fields of the config, e.g. ``sliding_window=8`` or ``rope_parameters={...}``.
    """
    path = Path(path)
    fields = {**_CONFIGS[family], **overrides}
    if tied is not None:
        fields["tie_word_embeddings"] = tied
    _random_model(family, fields, seed, head).to(dtype).save_pretrained(
        path, max_shard_size="100KB" if sharded else "10GB"
    )
    if tokenizer:
        make_tokenizer(path)
    return path


def make_tokenizer(path: str | Path) -> Path:
    """Writes tokenizer.json and tokenizer_config.json of a byte-level BPE tokenizer of `VOCAB_SIZE` entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "additional_special_tokens": [IM_START, IM_END],
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return path


def frame_tokenizer(path: Path) -> Path:
    """Has a tokenizer of `make_tokenizer` frame texts and pairs as BERT's does: BOS text EOS, with types for a pair."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B:1 {EOS}:1", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def edit_config(path: str | Path, **fields: Any) -> None:
    """Changes fields of a checkpoint's config.json; a value of ... removes the field."""
    file = Path(path) / "config.json"
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}, indent=2))


def _random_model(family: str, fields: dict[str, Any], seed: int, head: str) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(family, **fields)
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    model = auto.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(noise * 0.1 + (0.0 if name.endswith("bias") else 1.0))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    return model
