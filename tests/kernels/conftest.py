"""Fixtures for the C++ kernels."""

from __future__ import annotations

import pytest

from sgl.engine.base.device import CPU_ISAS, detect_isa
from sgl.kernels.cpu import native


@pytest.fixture(params=CPU_ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this processor has, in turn, with the library that is loaded for it."""
    if CPU_ISAS.index(request.param) > CPU_ISAS.index(detect_isa()):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("SGL_KERNEL_ISA", request.param)
    assert f"cpu-{request.param}-" in native.library()._name
    return str(request.param)
