"""`--correct`: the demo model agrees with transformers, and does not where it is run with another config."""

from __future__ import annotations

import pytest
import torch

from sgl.bench.correct import Spoken, compare
from tests.cli.test_main import run


def scores(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_differences_are_of_all_tokens_and_margins_of_the_answer() -> None:
    # two prompt tokens (1, 0), then the answer (2, 1); behind each but the last, what the reference thinks
    reference = scores([0.5, 0.25, 0.25], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1])
    spoken = Spoken([1, 0, 2, 1], [float(torch.tensor(p).log()) for p in (0.5, 0.2, 0.9)], 2, "answer")
    found = compare("prompt", spoken, reference)
    assert (found.num_tokens, found.num_other) == (2, 1)
    assert found.margin == pytest.approx(float(torch.tensor(3.0).log()))  # 0.6 against 0.2
    assert found.difference == pytest.approx(float(torch.tensor(0.9 / 0.8).log()))
    assert found.agrees(1.1) and not found.agrees(1.0)


def test_the_demo_model_agrees_with_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "one-batch", "--correct") == 0
    out = capsys.readouterr().out
    assert "They agree" in out and "The capital of Peru is" in out


def test_another_model_does_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    changed = '{"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}'
    assert run(monkeypatch, "bench", "one-batch", "--correct", "--json-model-override-args", changed) == 1
    told = capsys.readouterr().err
    assert "They do not agree" in told and "rope (rotary_emb)" in told and "rope_theta 300" in told


def test_random_weights_cannot_be_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "bench", "one-batch", "--correct", "--shape", "smollm2-135m") == 2
    assert "--correct needs a checkpoint" in capsys.readouterr().err
