"""``sgl kernels`` prints what the registry says."""

from __future__ import annotations

import pytest
import torch

from sgl.engine.base.device import CpuDevice
from sgl.kernels.registry import describe
from tests.cli.test_main import run


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Op -> implementation, as the command prints them."""
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "kernels", *words) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    return {line.split()[0]: line.split()[1] for line in lines if line.strip()}


def test_every_op_is_listed_with_its_implementation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(monkeypatch, capsys, "--dtype", "float32", "--device", "cpu")
    assert found == {row.op: row.chosen for row in describe("cpu", CpuDevice().isa, torch.float32)}


def test_overrides_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(printed(monkeypatch, capsys, "--kernel", "reference").values()) == {"reference"}
    assert run(monkeypatch, "kernels", "--kernel", "no=such") == 2
