"""Traces as torch and nsys write them, and files that are none."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import pytest
import torch

from sgl.engine.base.errors import SglError
from sgl.engine.base.trace import span
from sgl.profiles.analysis import analyse
from sgl.profiles.trace import read
from tests.profiles.traces import step, write


@pytest.mark.filterwarnings("ignore")  # the profiler warns about itself
def test_spans_and_operations_of_torchs_own_traces(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            with span("step"), span("forward"), span("layer 0"):
                torch.ones(8, 8) @ torch.ones(8, 8)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    (tmp_path / "trace.json.gz").write_bytes(gzip.compress((tmp_path / "trace.json").read_bytes()))
    for name in ("trace.json", "trace.json.gz"):
        found = analyse(read(tmp_path / name))
        assert (found.num_steps, found.device) == (3, "cpu")
        assert {"aten::mm", "aten::fill_"} <= {line.name for line in found.kernels}
        assert [(line.name, line.count) for line in found.layers] == [("layer 0", 3)]
        assert found.notes  # it does not say what was computed


def test_an_export_of_nsys(tmp_path: Path) -> None:
    """By the schema in nsys's documentation: ranges of the host, launches, and kernels with their launch's number."""
    path = tmp_path / "sgl.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(
            """
            CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE NVTX_EVENTS (start INT, end INT, eventType INT, text TEXT, textId INT, globalTid INT);
            CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME
                (start INT, end INT, globalTid INT, correlationId INT, nameId INT, returnValue INT);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL
                (start INT, end INT, deviceId INT, contextId INT, streamId INT, correlationId INT, demangledName INT);
            INSERT INTO StringIds VALUES (1, 'cudaLaunchKernel_v7000'), (2, 'void gemm<128>(float*)'), (3, 'forward');
            INSERT INTO NVTX_EVENTS VALUES
                (1000, 101000, 59, 'step', NULL, 5), (2000, 42000, 59, NULL, 3, 5),
                (3000, 30000, 59, 'layer 7', NULL, 5),
                (0, 900000, 60, 'not ours', NULL, 5), (7, NULL, 59, 'open', NULL, 5);
            INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (4000, 5000, 5, 77, 1, 0);
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (20000, 60000, 0, 1, 7, 77, 2);
            """
        )
    database.close()
    found = analyse(read(path))
    assert (found.device, found.num_steps, found.step_us) == ("gpu", 1, 100)
    assert [(line.name, line.total_us) for line in found.kernels] == [("void gemm<128>(float*)", 40)]
    assert [(line.name, line.total_us) for line in found.layers] == [("layer 7", 40)]
    assert found.idle_us == 60


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.json", b"{", "no trace of torch's profiler"),
        ("x.json", b'{"traceEvents": 3}', "no trace of torch's profiler"),
        ("x.json.gz", b"\x1f\x8bnot really", "no trace of torch's profiler"),
        ("x.nsys-rep", b"NSYS", "nsys export --type sqlite"),
        ("x.sqlite", b"SQLite format 3\0" + b"x" * 100, "no SQLite export of nsys"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SglError, match=told):
        read(path)
    with pytest.raises(SglError, match="cannot be read"):
        read(tmp_path / "nothing")


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    database.close()
    with pytest.raises(SglError, match="none of nsys's tables"):
        read(path)


@pytest.mark.parametrize("facts", [{"steps": [{"rows": 3}]}, {"steps": 7, "cost": []}, {"cost": {"linears": 3}}])
def test_facts_of_another_version_do_no_harm(tmp_path: Path, facts: dict[str, object]) -> None:
    path = write(tmp_path / "x.json", step(0.0))
    path.write_text(json.dumps({**json.loads(path.read_text()), "sgl": facts}))
    found = analyse(read(path))
    assert found.notes and all(line.work is None for line in found.kernels)
