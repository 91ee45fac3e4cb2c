"""Receipts: an answer that carries one can be computed again, and a receipt that was changed is refused."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import sgl
from sgl.engine import assembly
from sgl.engine.api.receipt import OPTIONS as TOLD
from sgl.engine.api.receipt import Maker, differences, read_receipts
from sgl.engine.base.digest import digest
from sgl.engine.base.errors import SglError
from tests.cli.test_main import run
from tests.models.checkpoints import make_checkpoint

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "max_total_tokens": 1024,
    "max_running_requests": 4,
    "cpu_threads": 1,
    "random_seed": 0,
}
FLAGS = ("--max-total-tokens", "1024", "--cpu-threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[sgl.Engine]:
    with sgl.Engine(model_path=str(model), **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def output(engine: sgl.Engine) -> dict[str, Any]:
    params = {"temperature": 0.9, "max_new_tokens": 12, "ignore_eos": True, "stop": ["zzzz"], "top_p": 0.95}
    found: dict[str, Any] = engine.generate("Once upon a time", params, return_receipt=True)
    return found


def test_a_receipt_says_what_was_asked_and_answered(engine: sgl.Engine, model: Path, output: dict[str, Any]) -> None:
    receipt = output["meta_info"]["receipt"]
    assert receipt["prompt_ids"] == tuple(engine.tokenizer.encode("Once upon a time"))
    assert len(receipt["output_ids"]) == 12 and receipt["params"]["top_p"] == 0.95 and receipt["stop"] == ("zzzz",)
    assert receipt["params"]["seed"] > 0, "the seed that was drawn is told"
    content = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    named = hashlib.sha256(f"model.safetensors {content}\n".encode()).hexdigest()
    assert receipt["maker"]["weights"] == f"sha256:{named}"
    assert receipt["maker"]["options"]["model_path"] == str(model)
    assert "receipt" not in engine.generate("Once", {"max_new_tokens": 1})["meta_info"]


@pytest.mark.parametrize("whole", [True, False], ids=["answer", "receipt"])
def test_an_answer_is_verified(
    whole: bool,
    output: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(output if whole else output["meta_info"]["receipt"]))
    assert run(monkeypatch, "verify", str(file), *FLAGS) == 0
    screen = capsys.readouterr()
    assert "verified: the same 12 tokens" in screen.out and "Not as it was" not in screen.err


def test_another_answer_and_other_weights_are_named(
    output: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    other = make_checkpoint("llama", tmp_path / "other", intermediate_size=96)
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(output))
    assert run(monkeypatch, "verify", str(file), str(other), *FLAGS) == 1
    screen = capsys.readouterr()
    assert "different from token" in screen.out
    assert "Not as it was: weights was sha256:" in screen.err


def test_a_receipt_that_was_changed_is_refused(output: dict[str, Any]) -> None:
    receipt = json.loads(json.dumps(output["meta_info"]["receipt"]))
    assert read_receipts(json.dumps(receipt).encode())[0].output_ids == tuple(receipt["output_ids"])
    receipt["output_ids"][3] += 1
    with pytest.raises(SglError, match="The receipt was changed"):
        read_receipts(json.dumps(receipt).encode())
    for text in (b"{", b"[]", b'{"text": "no receipt"}', b"7", b"", b"\xff", b"data: {", b"[" * 5000):
        with pytest.raises(SglError, match=r"receipt|`"):
            read_receipts(text)


def test_differences_are_told_by_name() -> None:
    maker = Maker(
        options={"dtype": "bfloat16", "model_path": "a"}, weights="w", template="", kernels={"x": "cpu"}, isa="amx"
    )
    assert differences(maker, msgspec.structs.replace(maker, options={"dtype": "bfloat16", "model_path": "b"})) == []
    other = msgspec.structs.replace(maker, isa="avx2", kernels={"x": "reference"}, options={"dtype": "float32"})
    assert differences(maker, other) == [
        "isa was amx and is avx2",
        "option dtype was bfloat16 and is float32",
        "kernel x was cpu and is reference",
    ]


def test_what_decides_how_a_model_computes_is_told() -> None:
    path = {"quantization_param_path"}  # of a file that is checked and not needed
    assert {*assembly._FORMATS, *assembly._CHOICES} - path <= set(TOLD)


def test_files_are_read_again_only_if_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = digest([file])
    assert digest([file]) == first and len(list((tmp_path / "cache/sgl/digests").iterdir())) == 1
    file.write_bytes(b"three")
    assert digest([file]) != first


def test_a_receipt_names_the_weights_that_computed_the_answer(model: Path, tmp_path: Path) -> None:
    """Of one that had begun when they were exchanged, and of one that had not."""
    other = make_checkpoint("llama", tmp_path / "other", seed=9)
    params = {"temperature": 0, "max_new_tokens": 150, "ignore_eos": True}
    with sgl.Engine(model_path=str(model), **{**OPTIONS, "max_running_requests": 1}) as engine:
        begun, found = threading.Event(), dict[str, Any]()

        def begin() -> None:
            for item in engine.generate("Once", params, stream=True, return_receipt=True):
                found["begun"] = item
                begun.set()

        def wait() -> None:
            found["waiting"] = engine.generate("upon", {**params, "max_new_tokens": 12}, return_receipt=True)

        threads = [threading.Thread(target=begin), threading.Thread(target=wait)]
        threads[0].start()
        assert begun.wait(60)
        threads[1].start()
        assert engine.update_weights_from_disk(str(other))["success"]
        for thread in threads:
            thread.join()
    receipts = {name: item["meta_info"]["receipt"] for name, item in found.items()}
    for path in (model, other):
        with sgl.Engine(model_path=str(path), **OPTIONS) as fresh:
            weights = digest([path / "model.safetensors"])
            for text, receipt in (("Once", receipts["begun"]), ("upon", receipts["waiting"])):
                options = {**params, "max_new_tokens": len(receipt["output_ids"])}
                answer = fresh.generate(text, options, return_receipt=True)
                is_its = answer["meta_info"]["receipt"]["output_ids"] == receipt["output_ids"]
                assert is_its == (receipt["maker"]["weights"] == weights)
                assert is_its == (receipt["maker"]["options"]["model_path"] == str(path))


def test_requests_at_once_read_the_checkpoint_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def slow(files: Any) -> str:
        seen.append(files)
        time.sleep(0.2)
        return "sha256:slow"

    monkeypatch.setattr("sgl.engine.api.front.digest", slow)
    with sgl.Engine(model_path=str(model), **OPTIONS) as engine:
        found = [engine.generate("a", {"max_new_tokens": 1}, stream=True, return_receipt=True) for _ in range(3)]
        threads = [threading.Thread(target=list, args=(stream,)) for stream in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen) == 1


def test_embeddings_as_input_have_no_receipt(model: Path) -> None:
    with (
        sgl.Engine(model_path=str(model), disable_radix_cache=True, **OPTIONS) as engine,
        pytest.raises(SglError, match="return_receipt needs the tokens of the prompt"),
    ):
        engine.generate(input_embeds=[[0.0] * 64], sampling_params={"max_new_tokens": 1}, return_receipt=True)
