"""``sgl schema check`` says what is enforced, and ends with 1 where something is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_main import run


@pytest.mark.parametrize(
    ("schema", "status", "words"),
    [
        ('{"type": "boolean"}', 0, ["#/type", "enforced", "5 tokens", "supported by llguidance"]),
        ('{"not": {}}', 1, ["#/not", "unsupported", "unbounded"]),
        ("{", 2, []),
    ],
    ids=["good", "bad", "no JSON"],
)
def test_check(
    schema: str,
    status: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "schema.json"
    file.write_text(schema)
    assert run(monkeypatch, "schema", "check", str(file)) == status
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize(
    ("schema", "status", "words"),
    [
        ('{"type": "string", "maxLength": 4}', 0, ["#/maxLength", "enforced", "26 tokens", "supported by native"]),
        ('{"type": "integer", "multipleOf": 3}', 1, ["#/multipleOf", "unsupported", "not supported by native"]),
        ('{"enum": ["ab", "a"], "maxLength": 1}', 1, ["#/enum", "beside others", "not supported by native"]),
        ('{"type": "string", "minLength": 2, "maxLength": 1}', 1, ["no number of characters", "not supported"]),
        ('{"const": NaN}', 2, []),
    ],
    ids=["good", "keyword", "mixture", "nothing", "no value"],
)
def test_check_for_our_own_automata(
    schema: str,
    status: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "schema.json"
    file.write_text(schema)
    assert run(monkeypatch, "schema", "check", "--backend", "native", str(file)) == status
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, "schema", "check", str(tmp_path / "none.json")) == 2
