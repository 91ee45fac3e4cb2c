"""Who else uses the cores, against made-up /proc trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sgl.bench.contamination import ContaminatedError
from sgl.bench.others import Usage

TICK = os.sysconf("SC_CLK_TCK")


def stat(root: Path, *busy_s: float) -> Path:
    """/proc/stat with so many seconds of every processor spent in user mode, and a day of waiting."""
    (root / "proc").mkdir(exist_ok=True)
    rows = [f"cpu{n} {int(s * TICK)} 0 0 {86400 * TICK} {3600 * TICK} 0 0 0 0 0" for n, s in enumerate(busy_s)]
    (root / "proc/stat").write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *rows, "intr 1", "ctxt 2"]) + "\n")
    return root


def test_only_the_cores_of_this_process_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    usage = Usage.now(stat(tmp_path, 1.0, 50.0, 2.0))
    assert usage.all_s == pytest.approx(3.0) and usage.cores == 2
    assert 0 < usage.own_s < 1e6


def test_what_the_machine_below_took_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(f"cpu0 {TICK} {TICK} {TICK} 9999 9999 {TICK} {TICK} {TICK} 9999 9999\n")
    assert Usage.now(tmp_path).all_s == pytest.approx(6.0)


def test_the_share_is_what_this_process_did_not_use() -> None:
    before = Usage(all_s=100.0, own_s=10.0, now_s=0.0, cores=4)
    alone = Usage(all_s=120.0, own_s=29.5, now_s=10.0, cores=4)
    assert before.share(alone) == pytest.approx(0.5 / 40)
    before.check(alone)
    crowded = Usage(all_s=140.0, own_s=30.0, now_s=10.0, cores=4)
    with pytest.raises(ContaminatedError, match="Other programs took 50% of the processor time"):
        before.check(crowded)


def test_a_system_that_does_not_tell_is_taken_to_be_quiet(tmp_path: Path) -> None:
    before, later = Usage.now(tmp_path), Usage.now(tmp_path)
    assert before.share(later) == 0.0
