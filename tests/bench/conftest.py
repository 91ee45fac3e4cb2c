"""Fixtures for the tests of benchmarks."""

from __future__ import annotations

import pytest

from sgl.bench.machine import Ceilings
from tests.bench.commands import Bench, Done
from tests.cli.test_main import run

PEAKS = {"matmul_bf16": 1e12, "matmul_fp32": 1e12}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs ``sgl bench ...`` in this process, on a machine whose peaks are known and whose memory is small."""
    monkeypatch.setattr("sgl.bench.machine.peaks", lambda *_: Ceilings({}, PEAKS))
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)

    def call(*words: str) -> Done:
        code = run(monkeypatch, "bench", *words)
        return Done(code, *capsys.readouterr())

    return call
