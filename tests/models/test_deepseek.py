"""DeepSeek: what a checkpoint may hold, what is kept per token, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl.engine.attn.batch import KVLayer
from sgl.engine.base.errors import ModelError
from sgl.engine.models.family import HfConfig
from sgl.engine.models.loader import read_config
from sgl.engine.models.registry import family_of
from sgl.engine.nn.spec import ModelSpec, MoeSpec
from sgl.engine.runtime.kv import kv_bytes_per_page
from sgl.kernels.cpu import native
from tests.models import oracle
from tests.models.checkpoints import edit_config, make_checkpoint
from tests.models.paged import Paged
from tests.quant import layouts

FP32, BF16 = torch.float32, torch.bfloat16
_GROUPED = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "norm_topk_prob": False,
    "topk_method": "group_limited_greedy",
}
PROMPT = [(37 * i) % 311 for i in range(40)]


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("deepseek_v3", tmp_path_factory.mktemp("v3") / "model", tokenizer=False)


def spec_of(path: Path, **fields: Any) -> ModelSpec:
    config = read_config(path, fields)
    return family_of(config).spec(HfConfig(config))


def test_a_token_keeps_one_latent_and_one_key_for_all_heads(v3: Path) -> None:
    model = Paged(v3, FP32).model
    assert [(spec.kind, spec.num_heads, spec.head_dim, spec.latent_dim) for spec in model.kv_specs] == [
        ("mla", 1, 32 + 16, 32)
    ] * 3
    assert kv_bytes_per_page(model.kv_specs, 16) == 16 * 3 * (32 + 16) * 4
    assert sum(part.num_layers * part.kv_bytes_per_token for part in model.cost.attention) == 3 * 48 * 4
    assert {part.flops_per_pair for part in model.cost.attention} == {2 * 4 * (48 + 32)}


def test_values_are_the_beginnings_of_the_keys(v3: Path) -> None:
    spec = Paged(v3, FP32).model.kv_specs[0]
    layer = KVLayer.make(spec, 5, 4, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    layer.k[2, 0, 3] = torch.arange(48.0)
    assert torch.equal(layer.v[2, 0, 3], torch.arange(32.0)) and layer.v.data_ptr() == layer.k.data_ptr()


def test_the_absorbed_products_are_counted(v3: Path) -> None:
    """All that a token is multiplied by: kv_b_proj as the checkpoint has it, experts included."""
    stored = load_file(v3 / "model.safetensors")
    cost = Paged(v3, FP32).model.cost
    weights = [t for name, t in stored.items() if t.dim() == 2 and "proj" in name]
    assert sum(part.params for part in cost.linears) == sum(weight.numel() for weight in weights)
    assert {product.name for product in cost.products} == {"qkv", "q", "out", "up", "down"}


def test_drafting_layers_are_left_out(v3: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    tensors = load_file(v3 / "model.safetensors")
    layers = {name: t for name, t in tensors.items() if name.startswith("model.layers.2.")}
    tensors |= {name.replace(".2.", ".3.", 1): t.clone() for name, t in layers.items()}
    tensors |= {f"model.layers.3.{name}": torch.ones(64) for name in ("enorm.weight", "shared_head.norm.weight")}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text((v3 / "config.json").read_text())
    edit_config(path, num_nextn_predict_layers=1)
    assert torch.equal(Paged(path, FP32).prompt(PROMPT), Paged(v3, FP32).prompt(PROMPT))
    edit_config(path, num_nextn_predict_layers=0)
    with pytest.raises(ModelError, match="not part of the model"):
        Paged(path, FP32)


def test_blocks_of_fp8(tmp_path: Path) -> None:
    """As the published V3 is stored: everything but norms, router and head; kv_b_proj is decoded for its two uses."""
    source = make_checkpoint("deepseek_v3", tmp_path / "float", tokenizer=False, hidden_size=192, kv_lora_rank=160)
    blocks = layouts.fp8((128, 128), "weight_scale_inv")
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    path = layouts.convert(source, tmp_path / "fp8", blocks, config)
    assert load_file(path / "model.safetensors")["model.layers.1.self_attn.kv_b_proj.weight"].dtype.itemsize == 1
    wanted = oracle.logits(path / "exact", FP32, PROMPT)
    assert (Paged(path, FP32).prompt(PROMPT) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_cache_stays_close(dtype: torch.dtype, tmp_path: Path) -> None:
    """Without experts, of which a little noise may choose others."""
    path = make_checkpoint("deepseek_v3", tmp_path / "dense", tokenizer=False, first_k_dense_replace=3)
    wanted = Paged(path, FP32).prompt(PROMPT)
    paged = Paged(path, FP32, loading={"kv_dtype": dtype})
    assert paged.model.kv_specs[0].bytes_per_token == 48 + 4
    error = float((paged.prompt(PROMPT, 7) - wanted).norm() / wanted.norm())
    assert 1e-4 < error < 0.1


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["bf16", "int8"])
def test_the_cpu_kernels_compute_latents(kv_dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Without experts, of which a little noise may choose others."""
    path = make_checkpoint("deepseek_v3", tmp_path / "dense", tokenizer=False, first_k_dense_replace=3)
    paged = Paged(path, BF16, page_size=16, backend="cpu", loading={"kv_dtype": kv_dtype})
    truth = oracle.true_bf16_logits(path, PROMPT)
    assert (paged.prompt(PROMPT) - truth).abs().max() < (2e-2 if kv_dtype is None else 5e-2) * truth.abs().max()
    assert torch.equal(paged.prompt(PROMPT, chunk=7), paged.prompt(PROMPT))


def test_experts_stand_where_the_configuration_says(v3: Path) -> None:
    def sparse(**fields: int) -> list[bool]:
        return [isinstance(layer.mlp, MoeSpec) for layer in spec_of(v3, num_hidden_layers=6, **fields).layers]

    assert sparse(first_k_dense_replace=2) == [False, False, True, True, True, True]
    assert sparse(first_k_dense_replace=1, moe_layer_freq=2) == [False, False, True, False, True, False]


_DEFAULTED = (
    *("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "num_experts_per_tok"),
    *("n_group", "topk_group", "first_k_dense_replace"),
)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_what_a_configuration_leaves_out_is_what_transformers_takes(version: str, v3: Path) -> None:
    """Fields at their default are often left out of config.json."""
    from transformers import DeepseekV2Config, DeepseekV3Config

    library: Any = {"v2": DeepseekV2Config, "v3": DeepseekV3Config}[version]()
    fields = {name: value for name, value in read_config(v3, {}).items() if name not in _DEFAULTED}
    fields |= {"architectures": [f"Deepseek{version.upper()}ForCausalLM"], "num_hidden_layers": 4}
    if version == "v2":  # which has no default of its own
        fields |= {"num_experts_per_tok": 6, "norm_topk_prob": False}
    spec = family_of(fields).spec(HfConfig(fields))
    moe = spec.layers[-1].mlp
    assert isinstance(moe, MoeSpec) and moe.shared is not None
    assert moe.num_experts == library.n_routed_experts
    assert moe.top_k == (library.num_experts_per_tok or 6)
    assert moe.expert.intermediate_size == library.moe_intermediate_size
    assert moe.shared.intermediate_size == library.n_shared_experts * library.moe_intermediate_size
    assert (moe.routing.groups, moe.routing.top_groups) == (library.n_group or 1, library.topk_group or 1)
    dense = [not isinstance(layer.mlp, MoeSpec) for layer in spec.layers]
    assert sum(dense) == library.first_k_dense_replace


def test_no_shared_experts_may_be_null_or_none(v3: Path) -> None:
    for count in (None, 0):
        moe = spec_of(v3, n_shared_experts=count).layers[-1].mlp
        assert isinstance(moe, MoeSpec) and moe.shared is None


def test_stretched_positions_sharpen_scores(v3: Path) -> None:
    """As the published V3 has it: 40 times the context, both weights 1, so that cosines keep their size."""
    scaling = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}
    scaling["original_max_position_embeddings"] = 4096
    plain, scaled = (
        spec_of(v3, rope_parameters=None, rope_scaling=found).layers[0].attention for found in (None, scaling)
    )
    assert plain.scale == pytest.approx(36**-0.5)
    assert scaled.scale == pytest.approx(36**-0.5 * (0.1 * 3.6888794541 + 1) ** 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"topk_method": "greedy"}, "topk_method 'greedy'"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ({"n_group": 3}, "8 experts cannot stand in 3 groups"),
        ({"topk_group": 5}, "of which a token takes 5"),
        ({"num_experts_per_tok": 5}, "cannot take 5 of 4 experts"),
        ({"q_lora_rank": None, "attention_bias": True}, "attention_bias"),
        ({"n_group": 8, "num_experts_per_tok": 2}, "two best"),
        ({"architectures": ["DeepseekV2ForCausalLM"], "scoring_func": "sigmoid"}, "scoring_func 'sigmoid'"),
        ({"architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": True}, "norm_topk_prob"),
        (
            {"architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": False, "topk_method": "noaux_tc"},
            "topk_method 'noaux_tc'",
        ),
        ({**_GROUPED, "n_group": None}, "n_group is missing"),
        ({**_GROUPED, "topk_group": None}, "topk_group is missing"),
        ({**_GROUPED, "num_experts_per_tok": None}, "num_experts_per_tok is missing"),
    ],
)
def test_what_is_not_supported_is_said(v3: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        spec_of(v3, **fields)
    assert words in caught.value.message
