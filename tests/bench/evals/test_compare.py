from __future__ import annotations

from pathlib import Path

import pytest

from sgl.bench.evals import running
from sgl.bench.evals.asks import Reply
from sgl.bench.evals.compare import Answers, compare, to_dict
from sgl.bench.evals.journal import Journal
from sgl.engine.base.errors import ConfigError
from tests.bench.evals.fake import Echo, FakeModel

QUESTIONS = [f"q{i}" for i in range(60)]


def answers(folder: Path, wrong: set[str], questions: list[str] = QUESTIONS, shots: int = 0) -> Answers:
    head = {"task": "echo", "model": folder.name, "facts": {}, "settings": {"shots": shots}}
    model = FakeModel(lambda prompt: Reply("?" if prompt in wrong else prompt, "stop"))
    with Journal(folder, head) as journal:
        running.evaluate(Echo(questions), model, journal=journal)
    return Answers.read(folder)


def test_runs_are_compared_item_by_item(tmp_path: Path) -> None:
    a = answers(tmp_path / "a", {*QUESTIONS[:24]})
    b = answers(tmp_path / "b", {*QUESTIONS[22:26]})
    found = compare(a, b)
    assert (found.a, found.b) == (36 / 60, 56 / 60)
    assert found.difference.value == pytest.approx(20 / 60)
    assert found.difference.low is not None and 0.15 < found.difference.low < 20 / 60
    assert {flip.a.id for flip in found.gained} == {f"echo/{i}" for i in range(22)}
    assert {flip.b.id for flip in found.lost} == {"echo/24", "echo/25"}
    assert found.p_value is not None and found.p_value < 1e-3
    assert found.verdict == "B is better"
    assert compare(b, a).verdict == "A is better"
    assert to_dict(found)["verdict"] == "B is better"


def test_chance_is_not_called_a_difference(tmp_path: Path) -> None:
    found = compare(answers(tmp_path / "a", {"q1", "q2"}), answers(tmp_path / "b", {"q3"}))
    assert found.verdict == "no difference is certain"


def test_different_questions_are_refused(tmp_path: Path) -> None:
    a = answers(tmp_path / "a", set())
    b = answers(tmp_path / "b", set(), QUESTIONS[:-2])
    with pytest.raises(ConfigError, match="2 questions were answered only in the first"):
        compare(a, b)


def test_different_settings_are_refused(tmp_path: Path) -> None:
    a, b = answers(tmp_path / "a", set()), answers(tmp_path / "b", set(), shots=5)
    with pytest.raises(ConfigError, match=r"settings.shots is 0 in the first and 5 in the second"):
        compare(a, b)
