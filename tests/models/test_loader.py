"""Loading: what is accepted, how it is converted, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl.engine.base.device import open_device
from sgl.engine.base.errors import ModelError
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.models.registry import family_of
from sgl.engine.nn.decoder import Model
from sgl.kernels.registry import bind
from tests.models import oracle
from tests.models.checkpoints import edit_config, make_checkpoint
from tests.models.paged import Paged

FP32, BF16 = torch.float32, torch.bfloat16
PROMPT = [5, 17, 250, 3, 99, 42]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path / "llama", tokenizer=False)


def load(path: Path, dtype: torch.dtype = FP32, load_format: str = "auto", seed: int = 0, **config: Any) -> Model:
    kernels = bind("cpu", "generic", dtype, ("reference",))
    return load_model(
        path,
        read_config(path, config),
        dtype=dtype,
        device=open_device("cpu"),
        kernels=kernels,
        load_format=load_format,
        seed=seed,
    )


def problem(path: Path, **config: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **config)
    assert "\n" not in caught.value.message
    return caught.value.message


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_sharded_equals_single(tmp_path: Path, llama: Path) -> None:
    sharded = make_checkpoint("llama", tmp_path / "sharded", sharded=True, tokenizer=False)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert torch.equal(Paged(sharded, FP32).prompt(PROMPT), Paged(llama, FP32).prompt(PROMPT))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["fp16", "fp64"])
def test_stored_dtypes_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path / "m", dtype=dtype, tokenizer=False)
    assert (Paged(path, FP32).prompt(PROMPT) - oracle.logits(path, FP32, PROMPT)).abs().max() < 1e-4


def test_a_tied_head_ignores_a_stored_one(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path / "m", tied=True, tokenizer=False)
    wanted = Paged(path, FP32).prompt(PROMPT)
    rewrite(path, lambda tensors: tensors.update({"lm_head.weight": torch.full((320, 64), 9.0)}))
    assert torch.equal(Paged(path, FP32).prompt(PROMPT), wanted)


def test_inverse_frequencies_of_old_checkpoints_are_ignored(llama: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(llama, lambda tensors: tensors.update({name: torch.ones(8)}))
    load(llama)


def test_weight_bytes(tmp_path: Path, llama: Path) -> None:
    size = sum(tensor.nbytes for tensor in load_file(llama / "model.safetensors").values())
    assert load(llama).weight_bytes == size
    tied = make_checkpoint("llama", tmp_path / "tied", tied=True, tokenizer=False)
    assert load(tied, BF16).weight_bytes == size // 2 - 320 * 64 * 2


def test_overrides_change_the_model(llama: Path) -> None:
    assert len(load(llama, load_format="dummy", num_hidden_layers=1).kv_specs) == 1
    message = problem(llama, num_hidden_layers=1)
    assert "9 not part of the model: model.layers.1." in message


def test_dummy_weights_need_config_json_only(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    first, again, other = (load(tmp_path, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    hidden = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.logits(hidden), again.logits(hidden))
    assert not torch.equal(first.logits(hidden), other.logits(hidden))
    assert 0.5 < first.logits(hidden).std() < 2


def test_missing_tensors_are_listed_up_to_ten(llama: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.1." in name or name == "model.norm.weight"]:
            del tensors[name]

    rewrite(llama, drop)
    message = problem(llama)
    assert "10 missing: model.layers.1.input_layernorm.weight, " in message and "model.norm.weight" in message
    rewrite(llama, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".mlp." in name])
    assert "13 missing: " in problem(llama) and " and 3 more." in problem(llama)


def test_extra_and_misshapen_tensors_are_named(llama: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
        tensors["model.norm.weight"] = torch.zeros(32)
        tensors["lm_head.weight"] = torch.zeros(320, 64, dtype=torch.int8)

    rewrite(llama, spoil)
    message = problem(llama)
    assert "1 not part of the model: model.layers.0.self_attn.q_proj.bias." in message
    assert "model.norm.weight ([32] instead of [64])" in message
    assert "lm_head.weight (I8)" in message


@pytest.mark.parametrize("size", [0, 5, 1000, -200])
def test_a_truncated_file_is_named(size: int, llama: Path) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is truncated or corrupt" in problem(llama)


def test_a_corrupt_file_is_named(llama: Path) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(b"\xff" * 100 + file.read_bytes())
    assert f"{file} is truncated or corrupt" in problem(llama)


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor" in problem(llama)
    (llama / "pytorch_model.bin").touch()
    assert "pytorch_model.bin is of a format that is not supported" in problem(llama)


def test_index_problems(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path / "m", sharded=True, tokenizer=False)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = sorted(set(content["weight_map"].values()))[1]
    (path / shard).rename(path / "elsewhere")
    assert f"names files that are not in the directory: {shard}." in problem(path)
    index.write_text(json.dumps({"weight_map": {"a": "../m/elsewhere"}}))
    assert "not in the directory: ../m/elsewhere." in problem(path)
    for broken in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(broken)
        assert f"{index} cannot be read" in problem(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["FooForCausalLM"]}, ("FooForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel")),
        ({"architectures": []}, ("no architectures",)),
        ({"hidden_act": "relu6"}, ("hidden_act 'relu6'", "silu")),
        ({"rope_parameters": {"rope_type": "spiral"}}, ("rope_type 'spiral'", "default, linear, llama3, yarn")),
        ({"rope_parameters": {"rope_type": "llama3"}}, ("rope_type 'llama3'", "low_freq_factor")),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
        ({"rope_parameters": [1]}, ("rope_parameters must be an object",)),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantization_config.bits is None", "2, 3, 4, 8")),
        ({"quantization_config": {"quant_method": "aqlm"}}, ("quant_method 'aqlm'", "compressed-tensors, fp8, gptq")),
        ({"hidden_size": None}, ("hidden_size is missing",)),
        ({"hidden_size": "64"}, ("hidden_size is '64'", "an integer")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers is 0", "positive")),
        ({"num_attention_heads": True}, ("num_attention_heads is True", "an integer")),
        ({"tie_word_embeddings": "no"}, ("tie_word_embeddings is 'no'", "true or false")),
        ({"num_key_value_heads": 3}, ("4 attention heads cannot share 3 key-value heads",)),
    ],
)
def test_configurations_that_are_not_supported_are_named(fields: Any, words: tuple[str, ...], llama: Path) -> None:
    message = problem(llama, **fields)
    assert all(word in message for word in words), message


def test_layer_types_are_checked(tmp_path: Path) -> None:
    path = make_checkpoint("qwen2", tmp_path / "m", tokenizer=False)
    for types in (["full_attention"], ["full_attention", "odd"], "full_attention"):
        assert "layer_types" in problem(path, use_sliding_window=True, layer_types=types)


def test_config_json_is_read_with_overrides(llama: Path) -> None:
    edit_config(llama, rope_parameters=..., rope_theta=123.0)
    config = read_config(llama, {"max_position_embeddings": 7})
    assert config["max_position_embeddings"] == 7 and config["rope_theta"] == 123.0
    (llama / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="JSON object"):
        read_config(llama, {})


def test_architectures_must_be_a_list() -> None:
    with pytest.raises(ModelError, match="architectures must be a list of names, got 'LlamaForCausalLM'"):
        family_of({"architectures": "LlamaForCausalLM"})
