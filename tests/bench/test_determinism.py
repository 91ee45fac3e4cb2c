"""The proof of determinism, on an engine that keeps its word and on one whose answers depend on the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.bench.determinism import Answer, draw_prompts, draw_schedule
from sgl.engine import assembly
from sgl.engine.api import AsyncEngine
from tests.cli.test_main import run
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint

OPTIONS = (
    "--device",
    "cpu",
    "--dtype",
    "bfloat16",
    "--max-total-tokens",
    "2048",
    "--max-running-requests",
    "8",
    "--cpu-threads",
    "1",
)
SIZES = ("--num-prompts", "5", "--prompt-len", "60", "--output-len", "8")
GIVEN = {"page_size": 16, "num_pages": 128, "max_step_tokens": 512}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def build_careless(config: Any, inbox: Any, outbox: Any) -> Any:
    """An engine whose scores depend, a little, on how many rows there are."""
    built = assembly.build_loop(config, inbox, outbox)
    model = built._executor.loaded._model
    scores = model.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = scores(hidden)
        return found * (1 + 1e-6 * (len(hidden) - 1))

    model.logits = logits
    return built


def test_an_engine_that_keeps_its_word_gets_a_certificate(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    words = ("prove-determinism", str(model), "--schedules", "12", "-o", str(file), *SIZES, *OPTIONS)
    assert run(monkeypatch, *words) == 0
    assert "identical" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["identical"] and found["divergence"] is None
    assert (found["num_schedules"], len(found["prompts"])) == (12, 5)
    assert min(found["num_preempted"], found["num_cached_tokens"], found["num_aborted"]) > 0, (
        "nothing was put to the test"
    )
    assert found["num_tokens"] == 8 * found["num_answers"]
    assert found["maker"]["weights"].startswith("sha256:") and found["maker"]["kernels"]["norm.rms"]


def test_the_first_answer_that_depends_on_its_batch_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = AsyncEngine.start
    careless = f"{__name__}:{build_careless.__name__}"
    monkeypatch.setattr(AsyncEngine, "start", lambda config, in_process: start(config, in_process=True, loop=careless))
    file = tmp_path / "certificate.json"
    words = ("prove-determinism", str(model), "--schedules", "12", "-o", str(file), *SIZES, *OPTIONS)
    assert run(monkeypatch, *words) == 1
    assert "different: schedule" in capsys.readouterr().out
    found = json.loads(file.read_text())["divergence"]
    (token, logprob), (then_token, then_logprob) = found["alone"], found["then"]
    assert (token, logprob) != (then_token, then_logprob)
    assert token != then_token or abs(logprob - then_logprob) < 1e-3
    assert found["schedule"]["asked"].count(found["prompt"]) >= 1


def test_answers_part_where_the_first_bit_differs() -> None:
    whole = Answer((1, 2, 3), (-1.0, -2.0, -3.0))
    assert whole.first_difference(Answer((1, 2, 3), (-1.0, -2.0, -3.0), cached_tokens=16)) is None
    assert whole.first_difference(Answer((1, 2, 4), (-1.0, -2.0, -3.0))) == 2
    assert whole.first_difference(Answer((1, 2, 3), (-1.0, -2.0000002, -3.0))) == 1
    assert whole.first_difference(Answer((1, 2), (-1.0, -2.0))) == 2


def test_schedules_are_drawn_within_what_the_engine_has() -> None:
    prompts = draw_prompts(6, VOCAB_SIZE, 8, 100, seed=3)
    assert prompts == draw_prompts(6, VOCAB_SIZE, 8, 100, seed=3) != draw_prompts(6, VOCAB_SIZE, 8, 100, seed=4)
    drawn = [draw_schedule(number, prompts, GIVEN, seed=5) for number in range(200)]
    for schedule in drawn:
        longest = max(len(prompts[index].token_ids) for index in schedule.asked) + 8
        assert -(-longest // 16) <= schedule.settings["num_pages"] <= 128
        assert 1 <= schedule.settings["max_step_tokens"] <= 512
        assert set(schedule.asked) == set(range(6))
    for name in ("num_pages", "max_step_tokens", "policy", "prefix_caching", "overlap"):
        assert len({schedule.settings[name] for schedule in drawn}) > 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--schedules", "0"), "--schedules must be at least 1, got 0."),
        (("--prompts", "/nowhere.txt"), "--prompts /nowhere.txt cannot be read: No such file or directory."),
    ],
    ids=["schedules", "prompts"],
)
def test_mistakes_are_named(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prove-determinism", *words) == 2
    assert told in " ".join(capsys.readouterr().err.split())
