"""The canary: weights that compute nonsense, or not what was recorded of them, never serve."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sgl
from sgl.engine.base import env, hub
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import RowOutput, StepPlan, TokenLogprob
from sgl.engine.runtime import weights
from sgl.engine.runtime.canary import Canary, Extent, Made, distance_of, implausible
from sgl.engine.runtime.weights import Source
from tests.cli.test_main import run
from tests.models.checkpoints import edit_config, make_checkpoint

OPTIONS: dict[str, Any] = {
    **{"dtype": "float32", "device": "cpu", "max_total_tokens": 1024, "max_running_requests": 4, "cpu_threads": 1},
    **{"page_size": 16, "random_seed": 0, "log_level": "error"},
}
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def cache(cache_of_tests: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that no other test knows, but for compiled kernels."""
    own = tmp_path / "cache" / "sgl"
    own.mkdir(parents=True)
    (own / "kernels").symlink_to(env.cache_dir() / "kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent))
    return own


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
    with pytest.raises(SglError, match=r"the canary failed: .* remove that file"):
        engine_of(path)
    os.utime(path / WEIGHTS)
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == "recorded", "a file that was written again is another one"


YARN = {"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4}


@pytest.mark.parametrize("carries", [False, True], ids=["kept", "carried"])
def test_another_configuration_is_another_model(carries: bool, recorded: Path, tmp_path: Path) -> None:
    """As model cards tell users to edit it; what is computed differs by more than any limit for the same kernels."""
    path = Path(shutil.copytree(recorded, tmp_path / "model"))
    if not carries:
        (path / hub.CANARY_FILE).unlink()
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == ("matched" if carries else "recorded")
        before = scores_of(engine)
    plain = json.loads((path / "config.json").read_text())
    edit_config(path, rope_parameters=None, rope_scaling=YARN)
    for state in ("recorded", "matched"):
        with engine_of(path) as engine:
            assert canary_of(engine)["state"] == state
            assert distance_of(before, scores_of(engine)) > 0.15
    (path / "config.json").write_text(json.dumps(plain))
    with engine_of(
        path, json_model_override_args=json.dumps({"rope_parameters": None, "rope_scaling": YARN})
    ) as engine:
        found = canary_of(engine)
        assert found["state"] == "matched" and found["distance"] == 0, "overrides are part of the configuration"
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == "matched"


def scores_of(engine: sgl.Engine) -> np.ndarray:
    return np.array(engine._loop.run(engine._engine.call("golden"))["scores"])


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


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_of_classes_may_be_alike(labels: int, tmp_path: Path) -> None:
    """A cross-encoder says one number, and two labels may be as good for a prompt that says nothing."""
    path = make_checkpoint("bert", tmp_path / "bert", head="SequenceClassification", num_labels=labels)
    change(path, lambda tensors: [tensors[name].mul_(1e-5) for name in tensors if name.startswith("classifier")])
    for state in ("recorded", "matched"):
        with sgl.Engine(
            model_path=str(path), device="cpu", cpu_threads=1, log_level="error", is_embedding=True
        ) as engine:
            assert canary_of(engine)["state"] == state
            spread = np.ptp(scores_of(engine))
    assert spread < 1e-4


def test_what_matches_stays_longest(model: Path, cache: Path) -> None:
    with engine_of(model) as engine:
        assert canary_of(engine)["state"] == "recorded"
    (file,) = (cache / "canaries").iterdir()
    os.utime(file, (1, 1))
    with engine_of(model) as engine:
        assert canary_of(engine)["state"] == "matched"
    assert file.stat().st_mtime > 1e9


@pytest.mark.parametrize(("family", "limit"), [("llama", 15), ("qwen3_moe", 50)])
def test_another_precision_has_a_limit_of_its_own(family: str, limit: int, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path / "model")
    with engine_of(path) as engine:
        golden = engine._loop.run(engine._engine.call("golden"))
    (path / hub.CANARY_FILE).write_text(json.dumps(golden))
    with engine_of(path, dtype="bfloat16") as engine:
        found = canary_of(engine)
    assert found["state"] == "matched" and f"limit {limit}%" in found["told"]


def test_a_golden_of_another_form_is_not_compared(recorded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(recorded, tmp_path / "model"))
    golden = json.loads((path / hub.CANARY_FILE).read_text())
    golden["scores"][3].pop()
    (path / hub.CANARY_FILE).write_text(json.dumps(golden))
    with engine_of(path) as engine:
        assert canary_of(engine)["state"] == "recorded"


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
    assert distance_of(0 * logits, logits) == float("inf")
    assert implausible(logits) == "" and "not numbers" in implausible(np.where(logits > 1, np.inf, logits))
    assert "do not depend" in implausible(logits[:1].repeat(5, 0)) and "as likely" in implausible(0 * logits)


def test_the_distance_of_classes_is_of_the_largest() -> None:
    def distance(a: list[float], b: list[float]) -> float:
        return distance_of(np.array([a]), np.array([b]), "classes")

    assert distance([0.001], [0.002]) == pytest.approx(0.001), "probabilities are as they are"
    assert distance([0.5, 0.4], [0.4, 0.4]) == pytest.approx(0.1)
    assert distance([-20.0, 1.0], [-19.0, 1.5]) == pytest.approx(0.05), "and large scores are rounded as such"
    assert implausible(np.array([[0.50001, 0.49999]]), "classes") == ""
    assert "not numbers" in implausible(np.array([[np.nan]]), "classes")


MADE = Made(sgl="1", isa="avx2", formats={"dtype": "bfloat16", "quantization": "none"}, kernels={"x": "native"})
OTHER = msgspec.structs.replace(MADE, isa="sm90", kernels={"x": "triton"})


class Scores:
    """What an executor gives as the log probabilities of a prompt."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def run_alone(self, plans: Iterable[StepPlan]) -> list[RowOutput]:
        rows = [TokenLogprob(0, 0.0, (), tuple(enumerate(row))) for row in self._rows.tolist()]
        return [RowOutput(prompt_logprobs=rows)]


def state_of(before: np.ndarray, told: Made, now: np.ndarray, here: Made, folder: Path, **extent: Any) -> str:
    """What is said of scores ``now`` that were ``before``; the checkpoint carries those."""

    def canary(rows: np.ndarray, made: Made) -> Canary:
        executor: Any = Scores(rows)
        return Canary(executor, Extent(1000, 64, 16, **extent), made, "refuse", lambda _: {})

    source = Source("model", "auto", folder, ())
    first, second = canary(before, told), canary(now, here)
    first.check(source)
    (folder / hub.CANARY_FILE).write_text(json.dumps(first.golden()))
    try:
        second.check(source)
    except SglError as error:
        assert "the canary failed" in error.message
        return "refused"
    return second.outcome.state


@pytest.mark.parametrize(
    ("apart", "here", "extent", "state"),
    [
        (0.04, MADE, {}, "matched"),
        (0.10, MADE, {}, "differs"),
        (0.20, MADE, {}, "refused"),
        (0.10, OTHER, {}, "matched"),
        (0.40, OTHER, {}, "differs"),
        (0.40, OTHER, {"is_quantized": True}, "matched"),
        (0.40, OTHER, {"has_experts": True}, "matched"),
        (0.60, OTHER, {"is_quantized": True}, "refused"),
        (0.60, OTHER, {"has_experts": True}, "refused"),
    ],
)
def test_what_other_hardware_computes_may_differ(
    apart: float, here: Made, extent: dict[str, Any], state: str, tmp_path: Path
) -> None:
    """Scores a given distance apart at every position."""
    before, noise = centred(np.random.default_rng(0).normal(size=(2, 8, 64)))
    now = before + noise * apart * np.linalg.norm(before) / np.linalg.norm(noise)
    assert state_of(before, MADE, now, here, tmp_path, **extent) == state


@pytest.mark.parametrize(("has_experts", "state"), [(True, "differs"), (False, "refused")])
def test_a_position_that_goes_to_other_experts_is_not_all_of_them(
    has_experts: bool, state: str, tmp_path: Path
) -> None:
    before, other = centred(np.random.default_rng(0).normal(size=(2, 8, 64)))
    now = before.copy()
    now[[2, 5]] = other[[2, 5]]
    assert distance_of(before, now) > 0.5
    assert state_of(before, MADE, now, MADE, tmp_path, has_experts=has_experts) == state
    now = other
    assert state_of(before, MADE, now, OTHER, tmp_path, has_experts=has_experts) == "refused"


def centred(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values - values.mean(-1, keepdims=True)
    return found
