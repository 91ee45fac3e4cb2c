from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl.bench.evals import journal as journals
from sgl.bench.evals import results, running
from sgl.bench.evals.asks import Reply
from sgl.bench.evals.items import Record
from sgl.bench.evals.journal import Journal
from sgl.engine.base.errors import ConfigError, SglError
from tests.bench.evals.fake import Echo, FakeModel

HEAD = {"task": "echo", "model": "fake", "facts": {}, "settings": {"shots": 0}}


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_BACKOFF_S", 0.0)


def test_answers_are_counted() -> None:
    model = FakeModel(
        lambda prompt: Reply(prompt if prompt != "b" else "?", "length" if prompt == "c" else "stop", 3, 2)
    )
    found = running.evaluate(Echo(["a", "b", "c", "d"]), model, parallel=2).summary()
    assert (found["accuracy"], found["num_right"], found["num_items"], found["num_failed"]) == (0.75, 3, 4, 0)
    assert (found["num_cut"], found["prompt_tokens"], found["completion_tokens"]) == (1, 12, 8)
    assert found["num_records"] == 4, "the task's own figures"


def test_what_failed_is_no_wrong_answer() -> None:
    model = FakeModel(lambda prompt: SglError("too long") if prompt == "b" else Reply(prompt, "stop"))
    run = running.evaluate(Echo(["a", "b", "c"]), model)
    found = run.summary()
    assert (found["accuracy"], found["num_answered"], found["num_failed"]) == (1.0, 2, 1)
    assert found["first_error"] == "too long"
    assert model.asked.count("b") == 1, "what will not pass is not asked again"


def test_what_may_pass_is_asked_again() -> None:
    faults = {"a": 2, "b": 99}

    def answer(prompt: str) -> Reply | SglError:
        faults[prompt] -= 1
        return SglError("busy", status=503, retryable=True) if faults[prompt] >= 0 else Reply(prompt, "stop")

    model = FakeModel(answer)
    run = running.evaluate(Echo(["a", "b"]), model)
    assert [record.id for record in run.records] == ["echo/0"]
    assert [record.error for record in run.failed] == ["busy"]
    assert model.asked.count("b") == running.ATTEMPTS


def test_a_run_without_hope_ends() -> None:
    model = FakeModel(lambda prompt: SglError("no server"))
    with pytest.raises(SglError, match="The first 8 questions failed: no server"):
        running.evaluate(Echo([str(i) for i in range(100)]), model, parallel=1)
    assert len(model.asked) == running.HOPELESS


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    questions = [f"q{i}" for i in range(20)]

    def answer(prompt: str) -> Reply | SglError:
        if prompt == "q7":
            raise KeyboardInterrupt
        return Reply(prompt, "stop")

    with Journal(tmp_path, HEAD) as journal:
        broken = running.evaluate(Echo(questions), FakeModel(answer), parallel=1, journal=journal)
    assert broken.interrupted and len(broken.records) == 7
    with Journal(tmp_path, HEAD) as journal:
        model = FakeModel()
        whole = running.evaluate(Echo(questions), model, journal=journal)
    assert len(model.asked) == 13
    assert whole.summary()["num_resumed"] == 7 and whole.summary()["accuracy"] == 1.0
    with Journal(tmp_path, HEAD) as journal:  # more questions of the same kind
        more = FakeModel()
        running.evaluate(Echo([*questions, "new"]), more, journal=journal)
    assert more.asked == ["new"]


def test_failures_are_written_and_asked_again(tmp_path: Path) -> None:
    with Journal(tmp_path, HEAD) as journal:
        model = FakeModel(lambda prompt: SglError("lost") if prompt == "b" else Reply(prompt, "stop"))
        running.evaluate(Echo(["a", "b"]), model, journal=journal)
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {line["id"]: line["error"] for line in lines[1:]} == {"echo/0": "", "echo/1": "lost"}
    with Journal(tmp_path, HEAD) as journal:
        again = FakeModel()
        running.evaluate(Echo(["a", "b"]), again, journal=journal)
    assert again.asked == ["b"]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    with Journal(tmp_path, HEAD) as journal:
        running.evaluate(Echo(["a", "b"]), FakeModel(), parallel=1, journal=journal)
    file = tmp_path / "items.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with Journal(tmp_path, HEAD) as journal:
        model = FakeModel()
        running.evaluate(Echo(["a", "b"]), model, journal=journal)
    assert model.asked == ["b"]
    assert len(journals.read(tmp_path)[1]) == 2


def test_answers_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    Journal(tmp_path, HEAD).close()
    other = {**HEAD, "settings": {"shots": 5}}
    with pytest.raises(ConfigError, match=r"other settings \(settings.shots: 0, now 5\)"):
        Journal(tmp_path, other)
    Journal(tmp_path, other, fresh=True).close()
    assert journals.read(tmp_path)[0]["settings"] == {"shots": 5}


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path, HEAD), pytest.raises(ConfigError, match="Another `sgl eval` writes to"):
        Journal(tmp_path, HEAD)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match="was not written by this version"):
        Journal(tmp_path, HEAD)


def test_a_result_says_where_it_comes_from() -> None:
    model = FakeModel()
    run = running.evaluate(Echo(["a"], shots=3), model)
    line = results.line(run, model, {"flag": 1})
    assert line["kind"] == "eval" and line["task"] == "echo" and line["model"] == "fake"
    assert isinstance(line["accuracy"], float) and '"accuracy": 1.0' in json.dumps(line)
    assert line["settings"] == {"shots": 3} and line["flags"] == {"flag": 1}
    assert line["versions"]["python"] and line["dataset_hash"] == run.data_hash
    other = running.evaluate(Echo(["b"], shots=3), model)
    assert other.data_hash != run.data_hash


def test_nothing_answered_is_no_result() -> None:
    run = running.Run(Echo(["a"]), Echo(["a"]).items(None), failed=[Record("k", "echo/0", error="gone")])
    with pytest.raises(SglError, match="No question of echo was answered: gone"):
        run.summary()
