"""The canary: weights that compute nonsense, or not what was recorded of them, never serve."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sgl
from sgl.engine.base import hub
from sgl.engine.base.errors import SglError
from sgl.engine.runtime import weights
from sgl.engine.runtime.canary import distance_of, implausible
from tests.cli.test_main import run
from tests.models.checkpoints import make_checkpoint

OPTIONS: dict[str, Any] = {
    **{"dtype": "float32", "device": "cpu", "max_total_tokens": 1024, "max_running_requests": 4, "cpu_threads": 1},
    **{"page_size": 16, "random_seed": 0, "log_level": "error"},
}
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that no other test knows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sgl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with its own scores beside it; its layers count for something."""
    path = make_checkpoint("llama", tmp_path_factory.mktemp("model"), seed=1)
    change(path, lambda tensors: [tensor.mul_(8) for name, tensor in tensors.items() if "layers" in name])
    return path


@pytest.fixture(scope="module")
def recorded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(model, tmp_path_factory.mktemp("recorded") / "model"))
    with engine_of(path) as engine:
        golden = engine._loop.run(engine._engine.call("golden"))
    (path / hub.CANARY_FILE).write_text(json.dumps(golden))
    return path


def engine_of(path: Path, **options: Any) -> sgl.Engine:
    return sgl.Engine(model_path=str(path), **{**OPTIONS, **options})


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """Edits a checkpoint's tensors."""
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / WEIGHTS, {"format": "pt"})
    return path


def canary_of(engine: sgl.Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get_server_info()["canary"]
    return found


def flip(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN] = tensors[DOWN].flip(0)


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN][3, 5] = torch.nan


def silence(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"].zero_()


def deafen(tensors: dict[str, Tensor]) -> None:
    """Every token is the same one."""
    tensors["model.embed_tokens.weight"][:] = tensors["model.embed_tokens.weight"][7]


def test_a_second_start_finds_the_scores_of_the_first(model: Path, cache: Path) -> None:
    with engine_of(model) as engine:
        first = canary_of(engine)
        assert first["state"] == "recorded" and first["ms"] > 0
    with engine_of(model) as engine:
        again = canary_of(engine)
    assert again["state"] == "matched" and again["distance"] == 0 and str(cache) in again["against"]
    with engine_of(model, dtype="bfloat16") as engine:
        assert canary_of(engine)["state"] == "recorded", "other formats have other scores"


def test_what_is_recorded_is_what_anybody_computes(recorded: Path) -> None:
    """The scores are transformers' log probabilities of the same prompt."""
    from transformers import AutoModelForCausalLM

    golden = json.loads((recorded / hub.CANARY_FILE).read_text())
    library = AutoModelForCausalLM.from_pretrained(recorded, dtype=torch.float32)
    with torch.no_grad():
        logprobs = library(torch.tensor([golden["prompt_ids"]])).logits[0].log_softmax(-1)
    theirs = logprobs[:, golden["token_ids"]].numpy()
    np.testing.assert_allclose(np.array(golden["scores"]), theirs, atol=2e-3)


@pytest.mark.parametrize("fault", [flip, spoil, silence, deafen])
def test_an_update_with_broken_weights_leaves_the_old_ones(
    fault: Callable[[dict[str, Tensor]], None], recorded: Path, tmp_path: Path
) -> None:
    broken = change(Path(shutil.copytree(recorded, tmp_path / "broken")), fault)
    with engine_of(recorded) as engine:
        answer = engine.generate("Once", GREEDY)["text"]
        before = engine.get_server_info()
        assert before["canary"]["state"] == "matched" and before["canary"]["distance"] == 0
        result = engine.update_weights_from_disk(str(broken))
        assert not result["success"] and result["message"].startswith("Failed to update weights: the canary failed: ")
        expected = {flip: "the model's scores are", spoil: "are not numbers"}.get(fault, "score")
        assert expected in result["message"] or "every token is as likely" in result["message"]
        assert engine.generate("Once", GREEDY)["text"] == answer and engine.get_server_info() == before
        assert engine.update_weights_from_disk(str(recorded))["success"]
        assert engine.generate("Once", GREEDY)["text"] == answer


def test_who_wants_to_can_serve_them_all_the_same(recorded: Path, tmp_path: Path) -> None:
    broken = change(Path(shutil.copytree(recorded, tmp_path / "broken")), flip)
    with pytest.raises(SglError, match=r"the canary failed: the model's scores are \d+% from those of .*sgl_canary"):
        engine_of(broken)
    with engine_of(broken, canary="warn") as engine:
        found = canary_of(engine)
        assert found["state"] == "failed" and found["distance"] > 0.15
    with engine_of(broken, canary="off") as engine:
        assert canary_of(engine)["state"] == "off"
        assert engine.update_weights_from_disk(str(broken))["success"]


def test_bytes_that_changed_though_their_file_did_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large file only samples are hashed; a bit that flips on the disk changes neither size nor time."""
    path = Path(shutil.copytree(model, tmp_path / "model"))
    monkeypatch.setattr(weights, "_fingerprint", lambda files: "samples")
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == "recorded"
    stamp = (path / WEIGHTS).stat()
    change(path, flip)
    os.utime(path / WEIGHTS, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(SglError, match="the canary failed"):
        engine_of(path)
    os.utime(path / WEIGHTS)
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == "recorded", "a file that was written again is another one"


def test_broken_weights_do_not_end_a_rest(recorded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(recorded, tmp_path / "model"))
    good = (path / WEIGHTS).read_bytes()
    with engine_of(path) as engine:
        answer = engine.generate("Once", GREEDY)["text"]
        engine.release_memory_occupation()
        change(path, spoil)
        with pytest.raises(SglError, match="the canary failed"):
            engine.resume_memory_occupation()
        with pytest.raises(SglError, match="memory is released"):
            engine.generate("Once", GREEDY)
        (path / WEIGHTS).write_bytes(good)
        engine.resume_memory_occupation()
        assert engine.generate("Once", GREEDY)["text"] == answer


def test_models_that_give_vectors_have_one_too(tmp_path: Path) -> None:
    path = make_checkpoint("bert", tmp_path / "bert", head="")
    options = {"is_embedding": True}
    for state in ("recorded", "matched"):
        with sgl.Engine(model_path=str(path), device="cpu", cpu_threads=1, log_level="error", **options) as engine:
            assert canary_of(engine)["state"] == state
    change(path, lambda tensors: tensors["embeddings.word_embeddings.weight"].fill_(torch.nan))
    with pytest.raises(SglError, match="are not numbers"):
        sgl.Engine(model_path=str(path), device="cpu", cpu_threads=1, log_level="error", **options)


def test_random_weights_are_only_looked_at(model: Path) -> None:
    with engine_of(model, load_format="dummy") as engine:
        assert canary_of(engine)["state"] == "plausible"


def test_the_doctor_records_what_is_healthy(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(model, tmp_path / "model"))
    assert run(monkeypatch, "doctor", "model", str(path), "--record-canary") == 0, capsys.readouterr()
    assert hub.CANARY_FILE in capsys.readouterr().err
    with engine_of(path, dtype="bfloat16", quantization="int8") as engine:
        found = canary_of(engine)
    assert found["state"] == "matched" and 0 < found["distance"] < 0.5 and "limit 50%" in found["told"]
    assert run(monkeypatch, "doctor", "model", "some/model", "--record-canary") == 2
    assert "needs a directory" in capsys.readouterr().err


def test_the_distance_is_that_of_logits() -> None:
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, 5, 9))
    assert distance_of(logits, logits + rng.normal(size=(5, 1))) < 1e-12, "log probabilities know no constant"
    centred = [values - values.mean(1, keepdims=True) for values in (logits, other)]
    expected = np.sqrt(((centred[0] - centred[1]) ** 2).sum() / (centred[0] ** 2).sum())
    assert abs(distance_of(logits, other) - expected) < 1e-12
    assert distance_of(logits, logits[:4]) == float("inf") and distance_of(0 * logits, logits) == float("inf")
    assert implausible(logits) == "" and "not numbers" in implausible(np.where(logits > 1, np.inf, logits))
    assert "do not depend" in implausible(logits[:1].repeat(5, 0)) and "as likely" in implausible(0 * logits)
