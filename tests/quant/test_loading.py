"""Somebody's quantized checkpoint computes what transformers computes with the weights that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.engine.base.device import open_device
from sgl.engine.base.errors import ConfigError, ModelError
from sgl.engine.models.loader import load_model, read_config
from sgl.kernels.cpu import native
from sgl.kernels.registry import bind
from sgl.quant.config import ONLINE, TORCHAO
from tests.models import oracle
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged
from tests.quant import layouts

PROMPT = [5, 17, 250, 3, 99, 42, 7, 300]
SHAPE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


def _gptq(bits: int, group: int, act_order: str = "", symmetric: bool = True, version: int = 1) -> Any:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": bool(act_order),
        "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return layouts.gptq(bits, group, act_order=act_order, symmetric=symmetric, version=version), config


_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
_BNB = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]}
CASES: dict[str, tuple[layouts.Writer, dict[str, Any]]] = {
    "fp8 blocks": (layouts.fp8((128, 128), "weight_scale_inv"), _BLOCKS),
    "fp8 tensor": (layouts.fp8(None, "weight_scale"), {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8 static": (layouts.fp8(None, "weight_scale", True), {"quant_method": "fp8", "activation_scheme": "static"}),
    "modelopt fp8": (layouts.fp8(None, "weight_scale", True), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "modelopt nvfp4": (layouts.modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "awq": (layouts.awq(64), _AWQ),
    "gptq 4": _gptq(4, 64),
    "gptq 4 act-order": _gptq(4, 32, "shared"),
    "gptq 4 asymmetric v2": _gptq(4, 64, symmetric=False, version=2),
    "gptq 4 one group": _gptq(4, -1, symmetric=False),
    "gptq 2": _gptq(2, 32, symmetric=False),
    "gptq 3": _gptq(3, 64, "shared"),
    "gptq 4 own orders": _gptq(4, 32, "own"),
    "gptq 8": _gptq(8, 64),
    "bnb int8": (layouts.bnb_int8, _BNB),
    "bnb nf4": (layouts.bnb_4bit("nf4", nested=False), _BNB),
    "bnb nf4 nested": (layouts.bnb_4bit("nf4", nested=True), _BNB),
    "bnb fp4": (layouts.bnb_4bit("fp4", nested=False), _BNB),
    "torchao int8": (layouts.torchao_int8, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8"}}}),
    "torchao fp8": (layouts.torchao_fp8, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8"}}}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen2", tmp_path_factory.mktemp("model") / "float", **SHAPE)


@pytest.mark.parametrize("case", CASES)
def test_computes_with_the_stored_numbers(case: str, source: Path, tmp_path: Path) -> None:
    """In float32, where everything is decoded: the same logits as transformers with those weights."""
    path = layouts.convert(source, tmp_path / "quantized", *CASES[case])
    kernels = ("linear.quantized=reference",)
    model = Paged(path, torch.float32, overrides=kernels, loading={"exact_activations": True})
    wanted = oracle.logits(path / "exact", torch.float32, PROMPT)
    torch.testing.assert_close(model.prompt(PROMPT), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "case", ["awq", "gptq 4", "gptq 4 act-order", "gptq 4 asymmetric v2", "gptq 3", "torchao int8"]
)
def test_packed_kernels_take_the_stored_integers(case: str, source: Path, tmp_path: Path) -> None:
    """In bfloat16 and with rounded activations: close to transformers with the stored weights."""
    path = layouts.convert(source, tmp_path / "quantized", *CASES[case])
    repack = case.startswith("torchao")
    model = Paged(path, torch.bfloat16, loading={"allow_repack": repack})
    wanted = oracle.logits(path / "exact", torch.float32, PROMPT)
    formats = {layer.qkv.format for layer in (layer.attention for layer in model.model._layers)}
    assert formats == {"int8" if repack else "int4"}
    error = (model.prompt(PROMPT) - wanted).norm() / wanted.norm()
    assert error < 0.03


@pytest.mark.parametrize(
    ("option", "name"), [*(("quantization", name) for name in ONLINE), *(("torchao_config", name) for name in TORCHAO)]
)
def test_rounding_while_loading_stays_close(option: str, name: str, source: Path) -> None:
    """Within the error of the bits that are left: a relative one of the logits of a random model."""
    model = Paged(source, torch.bfloat16, loading={option: name})
    wanted = oracle.logits(source, torch.float32, PROMPT)
    error = float((model.prompt(PROMPT) - wanted).norm() / wanted.norm())
    bits4 = "int4" in name or name == "nf4"
    assert (0.05 if bits4 else 0.002) < error < (0.35 if bits4 else 0.08)


def test_repacking_says_what_it_adds(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = layouts.convert(source, tmp_path / "quantized", *CASES["fp8 blocks"])
    wanted = oracle.logits(path / "exact", torch.float32, PROMPT)
    model = Paged(path, torch.bfloat16, loading={"allow_repack": True})
    assert "repacked to int8 (--allow-repack)" in caplog.text  # those of gates end within a block
    formats = {(layer.mlp.up.format, layer.mlp.down.format) for layer in model.model._layers}
    assert formats == {("int8", "fp8" if native.compiler() else "int8")}
    assert (model.prompt(PROMPT) - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("repack", [False, True], ids=["decoded", "repacked"])
def test_blocks_that_fit_no_kernel_are_decoded_or_repacked_and_say_so(
    repack: bool, source: Path, tmp_path: Path
) -> None:
    config = {**_BLOCKS, "weight_block_size": [64, 48]}
    path = layouts.convert(source, tmp_path / "quantized", layouts.fp8((64, 48), "weight_scale_inv"), config)
    model = Paged(path, torch.bfloat16, loading={"allow_repack": repack})
    formats = {module.format for layer in model.model._layers for module in (layer.attention.qkv, layer.mlp.down)}
    assert formats == {"int8" if repack else "bfloat16"}
    wanted = oracle.logits(path / "exact", torch.float32, PROMPT)
    assert (model.prompt(PROMPT) - wanted).norm() / wanted.norm() < 0.05


def _load(path: Path, quantization: str = "none", **options: Any) -> None:
    kernels = bind("cpu", "generic", torch.float32, ("reference",))
    load_model(
        path,
        read_config(path, {}),
        dtype=torch.float32,
        device=open_device("cpu"),
        kernels=kernels,
        quantization=quantization,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "int8"}, ("--quantization int8", "quantized already (awq)", "drop the option")),
        ({"quantization": "gptq"}, ("--quantization gptq", "contradicts", "awq")),
        ({"torchao_config": "int8dq"}, ("--torchao-config int8dq", "awq")),
        ({"load_format": "gguf"}, ("--load-format gguf", "awq")),
    ],
    ids=str,
)
def test_an_option_that_contradicts_the_checkpoint_says_so(
    options: dict[str, str], words: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    path = layouts.convert(source, tmp_path / "quantized", *CASES["awq"])
    _load(path, quantization="awq_marlin")  # true, so nothing to say
    with pytest.raises(ConfigError) as caught:
        _load(path, **options)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize("name", ["awq", "gptq_marlin", "w8a8_int8", "gguf"])
def test_a_method_of_quantized_checkpoints_is_refused_for_others(name: str, source: Path) -> None:
    with pytest.raises(ConfigError, match=f"--quantization {name} .*not quantized.*int8"):
        _load(source, quantization=name)


def _change(path: Path, **changes: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    for suffix, change in changes.items():
        name = next(name for name in tensors if name.endswith(f"layers.0.mlp.down_proj.{suffix}"))
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed.contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("case", "suffix", "change", "words"),
    [
        ("awq", "scales", lambda t: t.fill_(torch.nan), ("down_proj.scales", "NaN", "again")),
        ("awq", "scales", lambda t: t[:1], ("down_proj.scales ([1, 128] instead of [3, 128])",)),
        ("awq", "qzeros", lambda t: None, ("missing", "down_proj.qzeros")),
        ("awq", "qweight", lambda t: t.float(), ("down_proj.qweight (F32)", "dtype")),
        ("gptq 4 act-order", "g_idx", lambda t: t.fill_(0), ("down_proj", "g_idx", "32 inputs")),
        ("gptq 4 act-order", "g_idx", lambda t: t.fill_(99), ("down_proj", "g_idx", "0 to 5")),
        ("gptq 4", "bias", lambda t: t.fill_(1), ("down_proj.bias", "not zero")),
        ("fp8 blocks", "weight_scale_inv", lambda t: t.fill_(torch.inf), ("down_proj.weight_scale_inv", "infinite")),
        ("fp8 blocks", "weight", lambda t: t.view(torch.uint8).fill_(0x7F).view(t.dtype), ("down_proj.weight", "NaN")),
        ("fp8 static", "input_scale", lambda t: None, ("down_proj", "input_scale")),
        ("bnb nf4", "weight.absmax", lambda t: t[:5], ("down_proj", "absmax has 5 numbers")),
        ("bnb nf4", "weight.quant_state.bitsandbytes__nf4", lambda t: t[:9], ("down_proj", "quant_state")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_corrupt_tensors_are_named(
    case: str, suffix: str, change: Any, words: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    path = layouts.convert(source, tmp_path / "quantized", *CASES[case])
    _change(path, **{suffix: change})
    with pytest.raises(ModelError) as caught:
        _load(path)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_single_nan_in_fp8_never_reaches_a_kernel(code: int, source: Path, tmp_path: Path) -> None:
    """They read it out as a number."""

    def damaged(weight: torch.Tensor) -> torch.Tensor:
        weight.view(torch.uint8)[3, 5] = code
        return weight

    path = layouts.convert(source, tmp_path / "quantized", *CASES["fp8 blocks"])
    _change(path, weight=damaged)
    with pytest.raises(ModelError, match=r"down_proj\.weight holds NaN"):
        Paged(path, torch.bfloat16)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8", "nf4"])
def test_weights_that_are_no_numbers_are_not_rounded(quantization: str, source: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(source, tmp_path / "model")
    _change(tmp_path / "model", weight=lambda t: t.index_fill_(0, torch.tensor(3), torch.nan))
    with pytest.raises(ModelError, match=r"down_proj\.weight holds NaN"):
        _load(tmp_path / "model", quantization)


def test_a_group_that_does_not_fit_is_an_error(source: Path, tmp_path: Path) -> None:
    config = {**CASES["awq"][1], "group_size": 96}
    path = layouts.convert(source, tmp_path / "quantized", CASES["awq"][0], config)
    with pytest.raises(ModelError, match="128 inputs cannot be shared out to groups of 96"):
        _load(path)
