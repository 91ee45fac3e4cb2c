"""Data-free quantization of whole checkpoints: what is rounded, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgl.engine.base.errors import ConfigError, ModelError, SglError
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.packed import Packed
from sgl.quant.gate.job import Job, run
from sgl.quant.recipes import methods
from sgl.quant.recipes.plan import Recipe, layer_of, make_plan
from sgl.quant.recipes.source import Source, linear_modules
from tests.models.checkpoints import make_checkpoint

LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
SIZES = {"hidden_size": 64, "intermediate_size": 128}


class Silent:
    """A watcher that stops the run at a step, as Ctrl-C does."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps = 0
        self.stages: list[tuple[str, int, int]] = []
        self._stop_at = stop_at

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.stages.append((stage, total, done))

    def step(self, note: str, count: int = 1) -> None:
        self.steps += 1
        if self.steps == self._stop_at:
            raise KeyboardInterrupt


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_checkpoint("qwen2", folder, dtype=torch.bfloat16, sharded=True, **SIZES)


METHODS: dict[str, Callable[[], methods.RecipeFor]] = {
    "fp8": methods.fp8,
    "fp8-block": lambda: methods.fp8(block=True),
    "int8": methods.int8,
    "int8-weight-only": lambda: methods.int8(weight_only=True),
    "int4": lambda: methods.int4(algorithm="rtn", group=32),
    "int4-asymmetric": lambda: methods.int4(algorithm="rtn", asymmetric=True),
    "nvfp4": methods.nvfp4,
    "mxfp4": methods.mxfp4,
}


@pytest.mark.parametrize("method", METHODS)
def test_linear_layers_are_rounded_and_all_else_is_kept(model: Path, tmp_path: Path, method: str) -> None:
    outcome = run(Job(str(model), tmp_path / "out", METHODS[method]()), Silent())
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    kept = {name for name in before if not LINEAR.fullmatch(name)}
    assert all(after[name].equal(before[name]) for name in kept)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {**config, "quantization_config": None} == {
        **json.loads((model / "config.json").read_text()),
        "quantization_config": None,
    }
    assert "lm_head" in config["quantization_config"]["ignore"]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    decoded = decode(config["quantization_config"], after, before)
    assert decoded.keys() == before.keys() - kept
    for name, weight in decoded.items():
        error = float((weight - before[name].float()).norm() / before[name].float().norm())
        assert error < (0.15 if "4" in method else 0.04), name
    assert outcome.after == sum(tensor.nbytes for tensor in after.values())
    assert [layer.layer for layer in outcome.layers] == ["model.layers.0", "model.layers.1"]


def decode(config: Mapping[str, Any], stored: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by compressed-tensors' own decompression."""
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    assert library is not None
    (group,) = config["config_groups"].values()
    scheme = QuantizationScheme(**{key: value for key, value in group.items() if key != "format"})
    compressor = BaseCompressor.get_value_from_registry(group["format"])
    found = {}
    for name in before:
        module = name.removesuffix(".weight")
        parts = {
            key.removeprefix(f"{module}."): tensor for key, tensor in stored.items() if key.startswith(f"{module}.")
        }
        if LINEAR.fullmatch(name):
            found[name] = compressor.decompress(parts, scheme)["weight"].float()
    return found


def test_ignored_layers_stay(model: Path, tmp_path: Path) -> None:
    run(Job(str(model), tmp_path / "out", methods.int8([r".*down_proj", r"re:model\.layers\.1\."])), Silent())
    before, after = tensors_of(model), tensors_of(tmp_path / "out")
    ignored = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"]
    for name in filter(LINEAR.fullmatch, before):
        stays = "down_proj" in name or ".1." in name
        assert after[name].equal(before[name]) if stays else after[name].dtype == torch.int8
        assert (name.removesuffix(".weight") in ignored) == stays


def test_stacked_layers_share_the_global_scale(model: Path, tmp_path: Path) -> None:
    run(Job(str(model), tmp_path / "out", methods.nvfp4()), Silent())
    after = tensors_of(tmp_path / "out")
    scales = [after[f"model.layers.0.self_attn.{name}_proj.weight_global_scale"] for name in "qkv"]
    assert scales[0].equal(scales[1]) and scales[0].equal(scales[2])
    gate, up, down = (after[f"model.layers.0.mlp.{name}_proj.weight_global_scale"] for name in ("gate", "up", "down"))
    assert gate.equal(up) and not gate.equal(down)


def test_an_interrupted_run_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    run(Job(str(model), tmp_path / "whole", methods.fp8()), Silent())
    job = Job(str(model), tmp_path / "out", methods.fp8())
    for stop_at in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            run(job, Silent(stop_at))
        assert not job.out.exists() and not (tmp_path / "out.partial/config.json").exists()
    watcher = Silent()
    outcome = run(job, watcher)
    ((_, total, done),) = watcher.stages
    assert 0 < done < total and len(outcome.layers) == 2
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all(tensor.view(torch.uint8).equal(resumed[name].view(torch.uint8)) for name, tensor in whole.items())


def test_mixed_widths_are_said_by_name(model: Path) -> None:
    wide = "model.layers.0.mlp.down_proj"
    recipe = Recipe("int4", scheme=Packed(4, 32), wider={wide: Packed(8, None), "model.layers.1.mlp.up_proj": None})
    plan = make_plan(Source(model), recipe)
    groups = {
        tuple(group["targets"]): group["weights"]["num_bits"]
        for group in plan.quantization_config["config_groups"].values()
    }
    assert groups == {("Linear",): 4, (wide,): 8}
    assert plan.quantization_config["ignore"] == ["lm_head", "model.layers.1.mlp.up_proj"]


NO_LINEAR = [
    "model.layers.0.mlp.gate.weight",
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.0.mlp.shared_expert_gate.weight",
    "model.layers.0.mlp.router.weight",
    "model.embed_tokens.weight",
    "model.layers.0.embed_in.weight",
    "lm_head.weight",
]
LINEARS = [
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.experts.11.up_proj.weight",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
]


def test_routers_embeddings_and_heads_are_no_linear_layers(tmp_path: Path) -> None:
    weights = {name: torch.zeros(4, 4) for name in (*NO_LINEAR, *LINEARS)}
    save_file({**weights, "model.layers.0.norm.weight": torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert {f"{module}.weight" for module in linear_modules(Source(tmp_path))} == set(LINEARS)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers.12"),
        ("layers.3.mlp.experts.7.w1.weight", "layers.3"),
        ("model.norm.weight", ""),
    ],
)
def test_layers_are_told_by_their_first_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    make_checkpoint("llama", folder, dtype=torch.bfloat16, **SIZES)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_nan_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    model = damaged(tmp_path / "model", lambda tensors: tensors[name].view(-1)[3:4].fill_(torch.nan))
    with pytest.raises(ModelError, match=f"{name} holds NaN"):
        run(Job(str(model), tmp_path / "out", methods.fp8()), Silent())
    assert list(tmp_path.iterdir()) == [model]


def test_a_truncated_file_is_one_error(tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path / "model", **SIZES)
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated or corrupt"):
        run(Job(str(model), tmp_path / "out", methods.fp8()), Silent())
    assert list(tmp_path.iterdir()) == [model]


def test_quantized_and_transposed_checkpoints_are_refused(model: Path, tmp_path: Path) -> None:
    run(Job(str(model), tmp_path / "once", methods.fp8()), Silent())
    with pytest.raises(ModelError, match="quantized already"):
        run(Job(str(tmp_path / "once"), tmp_path / "twice", methods.fp8()), Silent())
    make_checkpoint("gpt2", tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"stored as \[in, out\]"):
        run(Job(str(tmp_path / "gpt2"), tmp_path / "twice", methods.fp8()), Silent())
    assert not list(tmp_path.glob("twice*"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: methods.int4(algorithm="rtn", group=128), "--group"),
        (lambda: methods.fp8([".*"]), "--ignore"),
        (lambda: methods.fp8(["no_such_layer"]), "matches no layer"),
        (lambda: methods.fp8(["("]), "regular expression"),
    ],
    ids=["group", "all", "none", "pattern"],
)
def test_what_does_not_fit_the_model(model: Path, tmp_path: Path, make: Callable[[], Any], told: str) -> None:
    with pytest.raises(SglError, match=told):
        run(Job(str(model), tmp_path / "out", make()), Silent())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: methods.fp8(static=True, block=True),
        lambda: methods.int8(algorithm="awq"),
        lambda: methods.int8(algorithm="smoothquant", weight_only=True),
        lambda: methods.int4(algorithm="smoothquant"),
        lambda: methods.int4(group=48),
    ],
)
def test_options_that_contradict_each_other(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_the_group_is_the_largest_that_fits(model: Path) -> None:
    recipe = methods.int4(algorithm="rtn")(Source(model))
    assert recipe.scheme == Packed(4, 64)
    assert methods.fp8(block=True)(Source(model)).scheme == Float8("block", "block")
