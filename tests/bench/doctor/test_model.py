"""Ten faults, each planted in a tiny checkpoint or in the engine, and healthy checkpoints in which nothing is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgl.bench.doctor.fault import Fault
from sgl.bench.doctor.model import Subject, examine, overrides
from sgl.engine.base import hub
from sgl.engine.base.errors import ConfigError
from sgl.engine.models.loader import Intake
from sgl.engine.nn.decoder import Model
from sgl.engine.nn.embedding import Inputs
from sgl.engine.nn.rope import Rope
from tests.models import oracle
from tests.models.checkpoints import BOS, FAMILIES, IM_START, edit_config, make_checkpoint

Edit = Callable[[dict[str, Tensor]], None]

LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GATE, UP = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
OUT = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> Path:
        path = make_checkpoint(family, tmp_path_factory.mktemp(family), eos_token_id=[1, 3])
        edit_tokenizer_config(path, eos_token="<|im_end|>")
        return path

    return make


@pytest.fixture
def planted(healthy: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a healthy checkpoint in which something may be broken."""
    return lambda family: Path(shutil.copytree(healthy(family), tmp_path / "planted"))


def edit_tokenizer_config(path: Path, **fields: Any) -> None:
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_weights(path: Path, edit: Edit) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def add_bos(path: Path) -> None:
    """Has the tokenizer put BOS in front of every text."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(path / "tokenizer.json"))


def find(path: Path, reference: Path | None = None, **fields: Any) -> list[Fault]:
    return examine(replace(Subject(str(path), str(reference or "")), **fields)).faults


def only(faults: list[Fault], check: str) -> Fault:
    [fault] = [fault for fault in faults if fault.check == check]
    assert fault.severity == "wrong" and fault.fix
    return fault


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_checkpoint_has_no_fault(family: str, healthy: Any) -> None:
    report = examine(Subject(str(healthy(family)), str(healthy(family))))
    assert not report.faults and not report.skipped
    assert "chat template" in report.done[0] and "values of 2 layers" in report.done[2]


def test_the_demo_model_has_no_fault() -> None:
    report = examine(Subject(str(hub.demo_model())))
    assert not report.faults and not report.skipped


def test_what_transformers_cannot_load_is_said(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our reader of tokenizers takes more than the library's; then there is nothing to compare with."""
    from transformers import AutoTokenizer

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Tokenizer class Exotic does not exist.\nSee the documentation.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    report = examine(Subject(str(planted("llama"))))
    [told] = [line for line in report.skipped if line.startswith("tokenizer")]
    assert told.endswith("transformers cannot load it: Tokenizer class Exotic does not exist.")
    assert report.done[0].startswith("tokenizer of ")


def test_weights_swapped_in_a_layer_of_the_checkpoint(planted: Any, healthy: Any) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        tensors[GATE], tensors[UP] = tensors[UP], tensors[GATE]

    edit_weights(path := planted("llama"), swap)
    faults = find(path, healthy("llama"))
    swapped = {fault.place: fault.found for fault in faults if fault.check == "weights"}
    assert swapped == {GATE: f"those of {UP}: they are swapped", UP: f"those of {GATE}: they are swapped"}
    assert only(faults, "layers").place == "layer 1, mlp activation (model.layers.1.mlp.down_proj)"


def test_weights_swapped_by_the_engine(healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put, others = Intake.put, {GATE: UP, UP: GATE}
    monkeypatch.setattr(Intake, "put", lambda self, name, tensor: put(self, others.get(name, name), tensor))
    fault = only(find(healthy("llama")), "layers")
    assert fault.place == "layer 1, mlp activation (model.layers.1.mlp.down_proj)"
    assert "what goes in is the same" in fault.found


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_wrong_rope_theta(family: str, planted: Any, healthy: Any) -> None:
    wrong = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    fault = only(find(healthy(family), overrides=wrong), "layers")
    assert fault.place == "rope (rotary_emb)"
    assert "rope_theta 500, default here, rope_theta 10000, default in the reference" in fault.found
    edit_config(path := planted(family), **wrong)
    fault = only(find(path, healthy(family)), "config")
    assert fault.place == "config.json: rope_parameters.rope_theta"
    assert (fault.expected, fault.found) == ("10000.0, as in the reference", "500.0")


def test_missing_bos(planted: Any, tmp_path: Path) -> None:
    path = planted("llama")
    without = Path(shutil.copytree(path, tmp_path / "without"))
    edit_tokenizer_config(path, add_bos_token=True)
    faults = [fault for fault in find(path) if "BOS is missing" in fault.found]
    assert faults[0].place == "tokenizer.json: post_processor"
    add_bos(path)
    [fault] = find(path)  # conversations are still without, as some models are trained
    assert (fault.check, fault.severity) == ("template", "weak")
    assert "BOS is missing" in fault.found and "bos_token" in fault.fix
    template = json.loads((path / "tokenizer_config.json").read_text())["chat_template"]
    edit_tokenizer_config(path, chat_template="{{ bos_token }}" + template)
    assert not find(path)
    edit_tokenizer_config(without, chat_template="{{ bos_token }}" + template)
    fault = only(find(without, path), "tokenizer")
    assert "as the reference encodes it" in fault.expected and "BOS is missing" in fault.found


@pytest.mark.parametrize(
    ("family", "field", "module"),
    [
        ("llama", "rms_norm_eps", "model.layers.0.input_layernorm"),
        ("gemma2", "rms_norm_eps", "model.layers.0.input_layernorm"),
        ("gpt2", "layer_norm_epsilon", "transformer.h.0.ln_1"),
    ],
)
def test_wrong_norm_epsilon(family: str, field: str, module: str, planted: Any, healthy: Any) -> None:
    fault = only(find(healthy(family), overrides={field: 0.01}), "layers")
    assert fault.place == f"layer 0, attention norm ({module})" and "epsilon 0.01 here, 1e-0" in fault.found
    edit_config(path := planted(family), **{field: 0.01})
    assert only(find(path, healthy(family)), "config").place == f"config.json: {field}"


def test_an_epsilon_too_small_to_show_is_found_by_its_number(healthy: Any) -> None:
    fault = only(find(healthy("llama"), overrides={"rms_norm_eps": 1.01e-6}), "layers")
    assert fault.place == "layer 0, attention norm (model.layers.0.input_layernorm)"
    assert (fault.expected, fault.found) == ("epsilon 1e-06", "epsilon 1.01e-06")


def test_transposed_matrix(planted: Any, healthy: Any, tmp_path: Path) -> None:
    def transpose(tensors: dict[str, Tensor]) -> None:
        tensors[OUT] = tensors[OUT].t()

    edit_weights(path := planted("llama"), transpose)
    faults = find(path, healthy("llama"))
    fault = only(faults, "weights")
    assert (fault.place, fault.found) == (OUT, "the transpose of them")
    expected = "layer 1, attention output projection (model.layers.1.self_attn.o_proj)"
    assert only(faults, "layers").place == expected

    def transpose_oblong(tensors: dict[str, Tensor]) -> None:
        tensors[UP] = tensors[UP].t()

    edit_weights(path, transpose_oblong)
    fault = only(find(path), "weights")
    assert (fault.place, fault.found) == (UP, "[64, 112]: transposed")


def test_truncated_vocabulary(planted: Any) -> None:
    def truncate(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:300]

    edit_weights(path := planted("llama"), truncate)
    faults = [fault for fault in find(path) if fault.check == "weights"]
    assert {fault.place for fault in faults} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("[300, 64]: the vocabulary is truncated" in fault.found for fault in faults)
    edit_config(path, vocab_size=300)
    fault = only(find(path), "tokenizer")
    assert fault.place == "tokenizer.json against config.json: vocab_size" and "20 tokens beyond" in fault.found


def test_wrong_template(planted: Any, healthy: Any) -> None:
    edit_tokenizer_config(path := planted("llama"), chat_template=LLAMA3)
    fault = only(find(path), "template")
    assert fault.place == "chat template" and "'<|start_header_id|>'" in fault.found
    edit_tokenizer_config(path, chat_template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    fault = only(find(path, healthy("llama")), "template")
    assert IM_START in fault.expected and IM_START not in fault.found
    edit_tokenizer_config(path, chat_template="{{ messages[0]['content'] }}")
    assert "first answer" in only(find(path), "template").found
    edit_tokenizer_config(path, chat_template="{{ raise_exception('no') }}")
    assert only(find(path), "template").found == "no"


def test_stale_tokenizer(planted: Any, healthy: Any) -> None:
    path = planted("llama")
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    by_id = {str(token["id"]): token for token in content["added_tokens"]}
    moved = {IM_START: 318, "<|im_end|>": 319}  # the former version had other tokens in their place
    at = {i: token for token, i in content["model"]["vocab"].items()}
    for token, i in moved.items():
        j = content["model"]["vocab"][token]
        content["model"]["vocab"][token], content["model"]["vocab"][at[i]] = i, j
        next(added for added in content["added_tokens"] if added["content"] == token)["id"] = i
    content["model"]["merges"] = []
    file.write_text(json.dumps(content))
    faults = [fault for fault in find(path) if fault.severity == "wrong"]
    assert faults[0].place == "config.json: eos_token_id" and "319 ('<|im_end|>')" in faults[0].expected
    edit_tokenizer_config(path, added_tokens_decoder=by_id)
    fault = find(path)[0]
    assert fault.place == "tokenizer.json" and "'<|im_start|>' is 318, not 2" in fault.found
    fault = next(fault for fault in find(path, healthy("llama")) if "reference" in fault.expected)
    assert (fault.check, fault.place) == ("tokenizer", "tokenizer.json") and "is 318, not 2" in fault.found


def test_float16_overflow(planted: Any) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        for name in (GATE, UP):
            tensors[name] *= 300

    edit_weights(path := planted("llama"), grow)
    assert not find(path)
    assert not oracle.logits(path, torch.float16, range(40)).isfinite().all()
    fault = only(find(path, serve_dtype="float16"), "layers")
    assert fault.place == "layer 1, mlp activation (model.layers.1.mlp.down_proj)"
    assert "float16 makes infinite" in fault.found and "bfloat16" in fault.fix
    edit_config(path, dtype="float16")
    assert only(find(path), "layers") == fault


def test_positions_off_by_one_in_the_engine(healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add, tables = Inputs._add_positions, Rope.tables
    monkeypatch.setattr(
        Inputs, "_add_positions", lambda self, x, batch: add(self, x, replace(batch, positions=batch.positions + 1))
    )
    fault = only(find(healthy("gpt2")), "layers")
    assert fault.place == "positions (transformer.wpe)" and "positions are 1 too high" in fault.found
    monkeypatch.setattr(Rope, "tables", lambda self, positions: tables(self, positions - 1))
    fault = only(find(healthy("llama")), "layers")
    assert fault.place == "rope (rotary_emb)" and "positions are 1 too low" in fault.found


def test_positions_off_by_one_in_the_checkpoint(planted: Any, healthy: Any) -> None:
    name = "transformer.wpe.weight"

    def shift(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].roll(-1, 0)

    edit_weights(path := planted("gpt2"), shift)
    faults = find(path, healthy("gpt2"))
    fault = only(faults, "weights")
    assert fault.place == name and "its rows one too early" in fault.found
    assert "positions are 1 too high" in only(faults, "layers").found


def test_decoding_off_by_one(healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers by themselves are right; what the engine feeds them is not."""
    call = Model.__call__

    def late(self: Model, batch: Any, *rest: Any) -> Tensor:
        is_decode = batch.q_lens == (1,)
        return call(self, replace(batch, positions=batch.positions + 1) if is_decode else batch, *rest)

    monkeypatch.setattr(Model, "__call__", late)
    fault = only(find(healthy("llama")), "answers")
    assert fault.place.startswith("decode, token ") and "though the layers by themselves agree" in fault.found


def test_numbers_that_are_none_and_files_that_are_missing(planted: Any) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[UP][3, 4] = torch.nan

    edit_weights(path := planted("llama"), spoil)
    fault = only(find(path), "weights")
    assert (fault.place, fault.found) == (UP, "NaN or infinite values")
    edit_weights(path, lambda tensors: tensors.__delitem__(UP))
    assert only(find(path), "weights").found == "it is missing"
    (path / "model.safetensors").unlink()
    (path / "tokenizer.json").unlink()
    assert [fault.check for fault in find(path)] == ["tokenizer", "weights"]


def test_answers_that_would_not_end_are_told(planted: Any) -> None:
    edit_config(path := planted("llama"), eos_token_id=1)
    edit_tokenizer_config(path, eos_token="<|eos|>")
    (path / "generation_config.json").unlink()
    [fault] = find(path)
    assert (fault.severity, fault.place) == ("weak", "generation_config.json: eos_token_id")
    assert fault.fix == "add 3 to eos_token_id"


def test_other_checkpoints_are_told_as_one(healthy: Any, tmp_path: Path) -> None:
    other = make_checkpoint("llama", tmp_path / "other", eos_token_id=[1, 3], seed=1)
    edit_tokenizer_config(other, eos_token="<|im_end|>")
    fault = only(find(other, healthy("llama")), "weights")
    assert fault.place == "all layers" and "another model" in fault.found
    [fault] = [fault for fault in find(other, healthy("gpt2")) if fault.check != "tokenizer"]
    assert (fault.place, fault.found) == ("config.json: architectures", "llama")


def test_overrides_must_be_an_object() -> None:
    assert overrides('{"a": 1}') == {"a": 1}
    with pytest.raises(ConfigError, match="JSON object"):
        overrides("[1]")
