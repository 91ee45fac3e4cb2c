from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.evals import running
from sgl.bench.evals.asks import Reply
from sgl.bench.evals.compare import Answers, compare, compare_all, to_dict
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


def noted(file: Path, rights: list[float], **fields: Any) -> Path:
    """Samples in the form of lm-eval 0.4; returns the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            **{"doc_id": i, "doc": {"question": f"q{i}"}, "target": f"t{i}", "arguments": [[f"q{i}", {}]]},
            **{
                "resps": [[f"r{i}"]],
                "filtered_resps": [f"r{i}"],
                "filter": "strict",
                "metrics": ["exact_match", "chars"],
            },
            **{"doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": f"t{i}"},
            **{"exact_match": right, "chars": 10.0 * right + i, "byte_perplexity": [-3.0, 7], **fields},
        }
        for i, right in enumerate(rights)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file.parent


def test_runs_of_lm_eval_are_compared_by_figure(tmp_path: Path) -> None:
    """Ours and those that lm-eval's own command leaves, of which the last run counts."""
    a = noted(tmp_path / "a" / "samples-sums.jsonl", [0, 0, 1, 1, 1, 1, 1, 0])
    noted(tmp_path / "a" / "samples-alone.jsonl", [1])
    b = noted(tmp_path / "b" / "samples_sums_2026-11-21T10-00-00.123456.jsonl", [0] * 8)
    noted(tmp_path / "b" / "samples_sums_2026-11-21T11-00-00.123456.jsonl", [1, 1, 1, 1, 1, 1, 0, 0])
    found = compare_all(*(Answers.read_all(path) for path in (a, b)))
    assert list(found) == ["sums exact_match,strict", "sums chars,strict"]
    right, chars = found.values()
    assert (right.figure, right.a, right.b, right.num_items) == ("accuracy", 5 / 8, 6 / 8, 8)
    assert [flip.a.id for flip in right.gained] == ["sums/0", "sums/1"]
    assert [flip.b.got for flip in right.lost] == [["r6"]]
    assert chars.figure == "mean" and chars.difference.value == pytest.approx(10 / 8)


@pytest.mark.parametrize(("metric", "figure"), [("acc_norm", "accuracy"), ("pass@1", "accuracy"), ("toxic", "mean")])
def test_zero_and_one_mean_right_and_wrong_only_where_that_is_known(metric: str, figure: str, tmp_path: Path) -> None:
    rights = ([0.0] * 20, [1.0] * 20)
    for name, values in zip("ab", rights, strict=True):
        file = tmp_path / name / "samples-sums.jsonl"
        noted(file, values)
        file.write_text(file.read_text().replace("exact_match", metric))
    found = compare_all(*(Answers.read_all(tmp_path / name) for name in "ab"))[f"sums {metric},strict"]
    assert (found.figure, found.verdict) == (figure, "B is better" if figure == "accuracy" else "B is higher")


def test_other_prompts_of_lm_eval_are_refused(tmp_path: Path) -> None:
    a = noted(tmp_path / "a" / "samples-sums.jsonl", [1, 0])
    b = noted(tmp_path / "b" / "samples-sums.jsonl", [1, 0], prompt_hash="with an example")
    c = noted(tmp_path / "c" / "samples-other.jsonl", [1, 0])
    with pytest.raises(ConfigError, match="2 questions were answered only in the first"):
        compare_all(Answers.read_all(a), Answers.read_all(b))
    with pytest.raises(ConfigError, match="no task in common"):
        compare_all(Answers.read_all(a), Answers.read_all(c))
    (a / "samples-sums.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="has a line that lm-eval did not write"):
        Answers.read_all(a)
    (a / "samples-sums.jsonl").write_text("")
    with pytest.raises(ConfigError, match="has no figure"):
        Answers.read_all(a)
