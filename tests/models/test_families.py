"""Every family against transformers on tiny random checkpoints: logits, greedy tokens, any chunking and batching."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import oracle
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.models.paged import Paged, Row

FP32, BF16 = torch.float32, torch.bfloat16

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tied": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama sharded": ("llama", {"sharded": True}),
    "llama rope llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "mistral": ("mistral", {}),
    "mistral window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2 upper window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2 yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, one kv head": ("qwen3", {"tied": True, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {}),
    "gemma2 tied, no caps": (
        "gemma2",
        {"tied": True, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 1000},
    ),
    "mixtral": ("mixtral", {}),
    "mixtral window": ("mixtral", {"sliding_window": 8}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe renormalized, one layer dense": ("qwen2_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe every second layer": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2}),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v2 whole queries, no groups": ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {}),
    "deepseek_v2 without experts": (
        "deepseek_v2",
        {"first_k_dense_replace": 2, "num_hidden_layers": 2, "q_lora_rank": None},
    ),
    "deepseek_v3 biases, halves, yarn": (
        "deepseek_v3",
        {
            "attention_bias": True,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "first_k_dense_replace": 0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "mscale": 0.8,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2 untied, scaled by depth": ("gpt2", {"tied": False, "scale_attn_by_inverse_layer_idx": True}),
}

PROMPTS = [random.Random(i).choices(range(VOCAB_SIZE), k=n) for i, n in enumerate((37, 1, 12, 70, 5))]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(case: str, dtype: torch.dtype = FP32) -> Path:
        family, options = CASES[case]
        return make_checkpoint(family, tmp_path_factory.mktemp("model"), dtype=dtype, tokenizer=False, **options)

    return make


@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_and_greedy_tokens(case: str, checkpoints: Any) -> None:
    path = checkpoints(case)
    paged = Paged(path, FP32)
    wanted = oracle.logits(path, FP32, PROMPTS[3])
    for chunk in (1000, 16, 7, 1):
        assert (paged.prompt(PROMPTS[3], chunk) - wanted).abs().max() < 1e-4, chunk
    assert paged.greedy([PROMPTS[0]], 10) == [oracle.greedy(path, PROMPTS[0], 10)]


@pytest.mark.parametrize("case", ["llama", "mistral window", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_batched_with_others_and_chunked(case: str, page_size: int, checkpoints: Any) -> None:
    path = checkpoints(case)
    paged = Paged(path, FP32, page_size=page_size)
    wanted = [oracle.greedy(path, prompt, 8) for prompt in PROMPTS]
    for chunk in (1000, 9, 1):
        assert paged.greedy(PROMPTS, 8, chunk) == wanted, chunk


@pytest.mark.parametrize("backend", ["torch_native", "auto"])
@pytest.mark.parametrize(
    "case", ["llama", "mistral window", "qwen2", "qwen3", "gemma2", "gpt2", "deepseek_v2 without experts"]
)
@pytest.mark.parametrize("stored", [FP32, BF16], ids=["converted", "as stored"])
def test_bf16(case: str, stored: torch.dtype, backend: str, checkpoints: Any) -> None:
    """The weights are bfloat16, the truth is float32: within 2e-2 of the largest logit, the token of transformers where
    its margin is clear, and no further from the truth than transformers in bfloat16.
    """
    path = checkpoints(case, stored)
    paged = Paged(path, BF16, page_size=16, backend=backend)
    theirs = oracle.logits(path, BF16, PROMPTS[3])
    truth = oracle.true_bf16_logits(path, PROMPTS[3])
    tolerance = 2e-2 * truth.abs().max()
    top = theirs.topk(2).values
    clear = top[:, 0] - top[:, 1] > tolerance
    assert clear.float().mean() > 0.5
    for chunk in (1000, 7, 1):
        got = paged.prompt(PROMPTS[3], chunk)
        assert (got - truth).abs().max() < tolerance
        assert torch.equal(got.argmax(-1)[clear], theirs.argmax(-1)[clear])
        assert (got - truth).square().mean() <= 1.1 * (theirs - truth).square().mean()


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(FP32, "torch_native"), (BF16, "torch_native"), (BF16, "auto")],
    ids=["fp32", "bf16", "bf16 auto"],
)
@pytest.mark.parametrize("case", ["llama", "mistral window", "qwen3", "gemma2", "gpt2", "qwen2_moe", "deepseek_v3"])
def test_what_a_decoding_row_is_batched_with_changes_nothing(
    case: str, dtype: torch.dtype, backend: str, checkpoints: Any
) -> None:
    """bf16: not one bit. fp32: rounding of the products only."""
    paged = Paged(checkpoints(case), dtype, page_size=16, backend=backend)
    rows = [Row([*prompt, 11]) for prompt in PROMPTS]
    paged.step(rows, [len(prompt) for prompt in PROMPTS])
    computed = [row.computed for row in rows]
    together = paged.step(rows, [1] * len(rows))
    for row, known, batched in zip(rows, computed, together, strict=True):
        row.computed = known
        alone = paged.step([row], [1])[0]
        if dtype is BF16:
            assert torch.equal(alone, batched)
        else:
            assert (alone - batched).abs().max() < 5e-6


@pytest.mark.parametrize(("dtype", "backend"), [(FP32, "torch_native"), (BF16, "auto")], ids=["fp32", "bf16 auto"])
def test_a_recycled_page_brings_nothing_from_its_former_owner(
    dtype: torch.dtype, backend: str, checkpoints: Any
) -> None:
    """A NaN that an earlier request left in a page must not reach the next one."""
    paged = Paged(checkpoints("llama"), dtype, page_size=16, backend=backend)
    clean = paged.prompt(PROMPTS[0], 5)
    tokens = paged.greedy(PROMPTS[:2], 4, 5)
    for kv in paged.kv:
        kv.k.fill_(torch.nan)
        kv.v.fill_(torch.inf)
    assert torch.equal(paged.prompt(PROMPTS[0], 5), clean)
    assert paged.greedy(PROMPTS[:2], 4, 5) == tokens


@pytest.mark.parametrize("case", ["llama", "qwen3", "gpt2"])
def test_reference_kernels(case: str, checkpoints: Any) -> None:
    path = checkpoints(case)
    got = Paged(path, FP32, overrides=("reference",)).prompt(PROMPTS[0])
    assert (got - oracle.logits(path, FP32, PROMPTS[0])).abs().max() < 1e-4


def test_original_gpt2_names(checkpoints: Any, tmp_path: Path) -> None:
    """The first checkpoints carry no prefix, no head and the causal mask."""
    from safetensors.torch import load_file, save_file

    source = checkpoints("gpt2")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(source / "model.safetensors").items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    assert torch.equal(Paged(tmp_path, FP32).prompt(PROMPTS[2]), Paged(source, FP32).prompt(PROMPTS[2]))
