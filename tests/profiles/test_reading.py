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
from tests.profiles.chrome_format import problems
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


SCHEMA = """
    CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE NVTX_EVENTS (start INT NOT NULL, end INT, eventType INT NOT NULL, rangeId INT, category INT, color INT,
        text TEXT, globalTid INT, endGlobalTid INT, textId INT, domainId INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INT NOT NULL, end INT NOT NULL, eventClass INT, globalTid INT,
        correlationId INT, nameId INT NOT NULL, returnValue INT NOT NULL, callchainId INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL,
        contextId INT NOT NULL, streamId INT NOT NULL, correlationId INT, globalPid INT, demangledName INT NOT NULL,
        shortName INT NOT NULL, graphNodeId INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL,
        contextId INT NOT NULL, streamId INT NOT NULL, correlationId INT, globalPid INT, bytes INT NOT NULL,
        copyKind INT NOT NULL, graphNodeId INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL,
        contextId INT NOT NULL, streamId INT NOT NULL, correlationId INT, globalPid INT, value INT, bytes INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL,
        contextId INT NOT NULL, streamId INT NOT NULL, correlationId INT, globalPid INT, graphId INT, graphExecId INT);
"""
"""As nsys documents it, in a version of 2024; columns that nobody reads are left out."""


def test_an_export_with_graphs_streams_copies_and_processes(tmp_path: Path) -> None:
    """Two processes of one machine, both of which number their launches from 1; a graph whose kernels are told one by
    one, all under the number of its launch, on two streams; a graph that is told as a whole; a copy beside it."""
    path = tmp_path / "sgl.sqlite"
    threads = [((pid << 24) | pid, pid << 24) for pid in (500, 501)]  # of each process its thread and itself
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        names = "cudaGraphLaunch_v10000", "gemm", "attention", "step", "forward", "cudaMemcpyAsync_v3020"
        database.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(names, 1))
        for (thread, process), offset in zip(threads, (0, 1_000_000), strict=True):
            ranges = [(0, 100_000, 4), (10_000, 40_000, 5)]
            rows = [(offset + a, offset + b, 59, thread, text, None) for a, b, text in ranges]
            rows.append((offset + 11_000, offset + 15_000, 59, thread, None, f"layer {3 if offset == 0 else 4}"))
            columns = "(start, end, eventType, globalTid, textId, text)"
            database.executemany(f"INSERT INTO NVTX_EVENTS {columns} VALUES (?, ?, ?, ?, ?, ?)", rows)
            launches = [(12_000, 14_000, 1, 1), (15_000, 16_000, 2, 6), (17_000, 18_000, 3, 1)]
            rows = [(offset + a, offset + b, thread, number, name) for a, b, number, name in launches]
            calls = "(start, end, globalTid, correlationId, nameId, returnValue) VALUES (?, ?, ?, ?, ?, 0)"
            database.executemany(f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME {calls}", rows)
            kernels = [(20_000, 40_000, 7, 2, 11), (30_000, 50_000, 8, 3, 12), (50_000, 60_000, 7, 2, 13)]
            rows = [(offset + a, offset + b, stream, process, name, node) for a, b, stream, name, node in kernels]
            columns = "start, end, streamId, globalPid, demangledName, graphNodeId, deviceId, contextId, correlationId"
            into = f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL ({columns}, shortName)"
            database.executemany(f"{into} VALUES (?, ?, ?, ?, ?, ?, 0, 1, 1, 2)", rows)
            copy = offset + 25_000, offset + 35_000, process
            database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 0, 1, 9, 2, ?, 4096, 1, NULL)", copy)
            whole = offset + 70_000, offset + 80_000, process
            database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (?, ?, 0, 1, 7, 3, ?, 5, 6)", whole)
    database.close()
    trace = read(path)
    found = analyse(trace)
    assert (found.device, found.num_steps, found.step_us) == ("gpu", 1, 100)
    kernels = {line.name: (line.count, line.total_us) for line in found.kernels}
    assert kernels == {"gemm": (2, 30), "attention": (1, 20), "memcpy HtoD": (1, 10), "graph 5": (1, 10)}
    assert [(line.name, line.total_us) for line in found.layers] == [("layer 3", 50)], "all kernels of the launch in it"
    assert found.idle_us == 100 - 40 - 10, "20 to 60 is busy on one stream or another, and 70 to 80"
    launched = {event.correlation for event in trace.events if event.kind == "launch"}
    assert len(launched) == 6, "a number of one process is not that of another"
    assert {event.correlation for event in trace.events if event.kind == "device"} == launched


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


def test_the_reading_of_the_format_finds_faults(tmp_path: Path) -> None:
    """The check of `tests.engine.test_profile` is worth something."""
    whole = {"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": 0.0, "dur": 10.0}
    name = {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "p"}}
    faults = {
        "dur is -1": {**whole, "dur": -1},
        "ts is None": {key: value for key, value in whole.items() if key != "ts"},
        "ends after": {**whole, "ts": 5.0},
        "no phase 'Z'": {**whole, "ph": "Z"},
        "never end": {**whole, "ph": "B"},
        "never begun": {**whole, "ph": "E"},
        "has no name": {**whole, "pid": 2},
        "without args.name": {**name, "args": {}},
        "has no end": {**whole, "ph": "s", "id": 3},
    }
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [name, whole]}))
    assert problems(path) == []
    for told, event in faults.items():
        path.write_text(json.dumps({"traceEvents": [name, whole, event]}))
        [problem] = problems(path)
        assert told in problem
