"""``sgl schema check`` says what is enforced, and ends with 1 where something is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_main import run

NATIVE = ("--backend", "native")
NOT_NATIVE = "not supported by native"


@pytest.mark.parametrize(
    ("options", "schema", "status", "words"),
    [
        ((), '{"type": "boolean"}', 0, ["#/type", "enforced", "5 tokens", "supported by llguidance"]),
        ((), '{"not": {}}', 1, ["#/not", "unsupported", "unbounded"]),
        ((), "{", 2, []),
        (
            NATIVE,
            '{"type": "string", "maxLength": 4}',
            0,
            ["#/maxLength", "enforced", "26 tokens", "supported by native"],
        ),
        (NATIVE, '{"type": "integer", "multipleOf": 3}', 1, ["#/multipleOf", "unsupported", NOT_NATIVE]),
        (NATIVE, '{"enum": ["ab", "a"], "maxLength": 1}', 1, ["#/enum", "beside others", NOT_NATIVE]),
        (NATIVE, '{"type": "string", "minLength": 2, "maxLength": 1}', 1, ["no number of characters", "not supported"]),
        (NATIVE, '{"const": NaN}', 2, []),
    ],
    ids=["good", "bad", "no JSON", "ours", "keyword", "mixture", "nothing", "no value"],
)
def test_check(
    options: tuple[str, ...],
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
    assert run(monkeypatch, "schema", "check", *options, str(file)) == status
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, "schema", "check", str(tmp_path / "none.json")) == 2
