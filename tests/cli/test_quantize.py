"""``sgl quantize``: what is printed, what is refused, and the exit status of every end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sgl.quant.gate import job
from sgl.quant.recipes import rounding
from tests.cli.test_main import HEAVY, imported_by, run
from tests.models.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_checkpoint("llama", folder, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)


def test_help_needs_nothing_heavy() -> None:
    for words in (("quantize", "--help"), ("quantize", "int4", "--help")):
        assert not imported_by(*words) & set(HEAVY)


def test_a_run_shows_what_came_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    assert run(monkeypatch, "quantize", "fp8", str(model), "-o", str(out), "--ignore", ".*down_proj") == 0
    printed = capsys.readouterr().out
    assert "model.layers.1  fp8-channel" in printed and f"Written to {out}" in printed
    assert "two layers and the embedding are" in printed
    assert run(monkeypatch, "quantize", "show", str(out)) == 0
    shown = capsys.readouterr().out
    assert "model.layers.1  fp8-channel" in shown and ".*down_proj" in shown and "no gate" in shown
    assert run(monkeypatch, "quantize", "show", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["method"] == "fp8"


def test_a_gate_that_fails_ends_with_3(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("SGL_MAX_TOTAL_TOKENS", "512")
    words = ("--algorithm", "rtn", "--gate", "kl<=1e-9", "--gate-samples", "6", "--max-tokens", "32")
    assert run(monkeypatch, "quantize", "int4", str(model), "-o", str(tmp_path / "out"), *words) == 3
    printed = capsys.readouterr()
    assert "failed: beyond" in printed.out and "nothing was written" in printed.err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rounding.round_unit
    count = 0

    def interrupted(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        done(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rounding, "round_unit", interrupted)
    words = ("quantize", "fp8", str(model), "-o", str(tmp_path / "out"))
    assert run(monkeypatch, *words) == 130
    assert "goes on from" in capsys.readouterr().err
    assert run(monkeypatch, *words[:1], "int8", *words[2:]) == 2
    assert "--restart" in capsys.readouterr().err
    assert run(monkeypatch, *words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fp8",), "-o DIR is missing"),
        (("fp8", "-o", "x", "--static", "--block"), "exclude each other"),
        (("int4", "-o", "x", "--group", "48"), "--group must be"),
        (("int4", "-o", "x", "--algorithm", "magic"), "--algorithm magic"),
        (("int4", "-o", "x", "--auto"), "--auto needs --gate"),
        (("int4", "-o", "x", "--gate", "kl>1"), "no criterion"),
        (("int4", "-o", "x", "--gate", "eval:nothing>=0.5"), "no task"),
        (("int4", "-o", "x", "--gate-samples", "0", "--algorithm", "rtn"), "--gate-samples must be"),
        (("int4", "-o", "x", "--calibration", "nowhere.jsonl", "--algorithm", "rtn"), "no such file"),
        (("fp8", "-o", "x", "--max-shard-size", "0"), "--max-shard-size"),
        (("show", "nowhere"), "no directory"),
        (("int5",), "no command"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:1]),
)
def test_mistakes_are_one_sentence(
    words: tuple[str, ...],
    told: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words if words[0] == "show" else (words[0], str(model), *words[1:])
    assert run(monkeypatch, "quantize", *given) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise job.SglError("pip install 'sgl[quant]'")

    monkeypatch.setattr(job, "check_installed", absent)
    assert run(monkeypatch, "quantize", "int4", str(model), "-o", str(tmp_path / "out")) == 2
    assert "sgl[quant]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
