"""Spans show in a profile, and are nothing without one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sgl.engine.base import env
from sgl.engine.base.trace import span


@pytest.mark.filterwarnings("ignore")  # the profiler warns about itself
def test_a_span_shows_in_the_profile_that_is_recorded() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, span("schedule"):
        torch.ones(1)
    assert "schedule" in {event.key for event in profile.key_averages()}


def test_without_a_profile_there_is_one_shared_null() -> None:
    assert span("a") is span("b")
    with span("a"), span("a"):
        pass


def test_it_does_not_import_torch() -> None:
    code = "import sys; from sgl.engine.base.trace import span; span('a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spans_are_nvtx_ranges_where_nsys_asks_for_them() -> None:
    pytest.importorskip("nvtx")
    code = """
import nvtx
from sgl.engine.base.trace import span
assert type(span("a")) is nvtx.annotate
with span("a"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], env={**env.all_variables(), "SGL_NVTX": "1"}, check=False)
    assert done.returncode == 0
