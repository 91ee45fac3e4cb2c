from __future__ import annotations

import json

import pytest

from sgl.bench.doctor import environment
from sgl.bench.doctor.environment import Finding
from sgl.engine.base import hub
from tests.cli.test_main import run


def test_the_report_is_for_people_and_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("sgl", "ok", "1.0"), Finding("packages", "weak", "no x", "pip install x")]
    monkeypatch.setattr(environment, "examine", lambda **_: findings)
    assert run(monkeypatch, "doctor") == 0
    told = capsys.readouterr().out
    assert "cores" in told and "pip install x" in told and "ops have what is made for this device" in told
    findings.append(Finding("packages", "broken", "no y", "pip install y"))
    assert run(monkeypatch, "doctor", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["findings"][2] == {"topic": "packages", "state": "broken", "told": "no y", "fix": "pip install y"}
    assert content["machine"]["cores"] >= 1 and "norm.rms" in content["kernels"]


def test_a_model_is_examined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(hub.demo_model())
    assert run(monkeypatch, "doctor", "model", demo) == 0
    assert "Nothing is wrong with it." in capsys.readouterr().out
    wrong = ["--json-model-override-args", '{"rms_norm_eps": 0.01}']
    assert run(monkeypatch, "doctor", "model", demo, *wrong) == 1
    out = capsys.readouterr().out
    assert out.startswith("wrong  layers    layer 0, attention norm (model.layers.0.input_layernorm)\n")
    assert "epsilon 0.01 here, 1e-06 in the reference" in out
    assert run(monkeypatch, "doctor", "model", demo, *wrong, "--json") == 1
    [fault] = json.loads(capsys.readouterr().out)["faults"]
    assert fault["severity"] == "wrong" and fault["fix"]


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "doctor", "model", "/nowhere") == 2
    assert "no such directory" in capsys.readouterr().err
