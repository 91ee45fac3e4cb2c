"""The phases of a start, and when this process began."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sgl.engine.base.timeline import Timeline, process_start_s


def test_the_phases_add_up_to_the_whole() -> None:
    timeline = Timeline(10.0)
    timeline.mark("command line", 10.25)
    timeline.extend([("imports", 11.0), ("weights", 12.5)])
    timeline.mark("warm-up")
    assert list(timeline.phases()) == ["command line", "imports", "weights", "warm-up"]
    assert list(timeline.phases().values())[:3] == [0.25, 0.75, 1.5]
    assert sum(timeline.phases().values()) == pytest.approx(timeline.total_s)


def test_it_reads_as_a_sum() -> None:
    timeline = Timeline(1.0)
    assert (timeline.total_s, timeline.phases()) == (0.0, {})
    timeline.mark("imports", 2.5)
    timeline.mark("weights", 2.75)
    assert str(timeline) == "1.75 s: imports 1.50, weights 0.25"


def test_a_process_knows_when_it_was_started() -> None:
    code = "from sgl.engine.base.timeline import process_start_s; print(process_start_s())"
    before_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert before_s - 0.02 <= float(done.stdout) <= time.monotonic()  # the kernel counts hundredths of a second
    assert process_start_s() < before_s
