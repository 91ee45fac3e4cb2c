"""What a replay of plans takes from a record; whole replays are in tests/cli/test_replay.py."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from sgl.engine.base.errors import ConfigError
from sgl.engine.base.types import UNSETTLED, HostDraws, KnownMasks, PageRun, Row, StepPlan
from sgl.engine.core.record import FileRecorder, RecordedStep
from sgl.engine.replay import Needs


def record(path: Path, *rows: Row) -> Path:
    recorder = FileRecorder(path)
    for number, row in enumerate(rows):
        recorder.write(RecordedStep(StepPlan(number, (row,)), {}, []))
    recorder.close()
    return path


def test_a_record_says_how_much_memory_it_needs(tmp_path: Path) -> None:
    path = record(
        tmp_path / "plans",
        Row(rid="a", slot=2, num_tokens=20, computed=0, new_pages=PageRun(0, (7, 3))),
        Row(rid="a", slot=2, num_tokens=1, new_pages=PageRun(2, (4,))),
    )
    assert Needs.of(path, 10) == Needs(num_steps=2, num_pages=8, num_slots=3)
    with pytest.raises(ConfigError, match="--page-size 8 is smaller than it was"):
        Needs.of(path, 8)


def test_a_forced_token_is_a_mask_of_one_bit() -> None:
    masks = KnownMasks({1: b"\xff"}, {0: 13})
    assert set(masks.rows) == {0, 1}
    draws = HostDraws((ctypes.c_int64 * 3)(4, 5, 6), (1, 2))
    assert masks.settle([0, 1], draws) == 1 and list(draws.token_ids) == [4, 13, UNSETTLED]
    forced, known = masks.read([0, 1])
    assert np.flatnonzero(np.unpackbits(np.frombuffer(forced, np.uint8), bitorder="little")).tolist() == [13]
    assert known == b"\xff"
