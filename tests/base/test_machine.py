"""Detection against made-up /proc and /sys trees."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from sgl.engine.base import machine

MIB = 2**20


def tree(root: Path, **files: str) -> Path:
    """Files by path with ``__`` for slashes, beside 16 GiB of memory of which half is free."""
    defaults = {"proc__meminfo": "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB\n"}
    for name, text in (defaults | files).items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_without_limits_is_the_machines(tmp_path: Path) -> None:
    assert machine.memory(tree(tmp_path)) == (16 * 1024 * MIB, 8 * 1024 * MIB)


def test_the_tightest_control_group_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/pod/box\n",
        **{
            "sys__fs__cgroup__memory.max": "max\n",
            "sys__fs__cgroup__pod__memory.max": f"{4096 * MIB}\n",
            "sys__fs__cgroup__pod__memory.current": f"{1024 * MIB}\n",
            "sys__fs__cgroup__pod__memory.stat": f"anon 1\ninactive_file {512 * MIB}\n",
            "sys__fs__cgroup__pod__box__memory.max": f"{6144 * MIB}\n",
            "sys__fs__cgroup__pod__box__memory.current": "0\n",
        },
    )
    assert machine.memory(root) == (4096 * MIB, 3584 * MIB)  # the file cache can be dropped


def test_the_older_control_groups_count_too(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        **{
            "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{1024 * MIB}",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{2048 * MIB}",
            "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "150000",
            "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
        },
    )
    assert machine.memory(root) == (1024 * MIB, 0)
    assert machine.cores(root) == 1


def test_the_older_control_groups_have_paths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    root = tree(
        tmp_path,
        proc__self__cgroup="7:memory:/pod/box\n4:cpu,cpuacct:/pod\n0::/elsewhere\n",
        **{
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712",  # no limit
            "sys__fs__cgroup__memory__pod__memory.limit_in_bytes": f"{2048 * MIB}",
            "sys__fs__cgroup__memory__pod__memory.usage_in_bytes": f"{1024 * MIB}",
            "sys__fs__cgroup__memory__pod__memory.stat": f"inactive_file 1\ntotal_inactive_file {256 * MIB}\n",
            "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1",
            "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
            "sys__fs__cgroup__cpu__pod__cpu.cfs_quota_us": "800000",
            "sys__fs__cgroup__cpu__pod__cpu.cfs_period_us": "100000",
        },
    )
    assert machine.memory(root) == (2048 * MIB, 1280 * MIB)
    assert machine.cores(root) == 8


def test_both_versions_may_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    limits = {"sys__fs__cgroup__unified__box__cpu.max": "200000 100000"}
    assert machine.cores(tree(tmp_path, proc__self__cgroup="4:cpu:/\n0::/box\n", **limits)) == 2


def test_what_slows_a_container_down_is_a_limit(tmp_path: Path) -> None:
    limits = {"sys__fs__cgroup__memory.high": f"{512 * MIB}", "sys__fs__cgroup__memory.max": f"{1024 * MIB}"}
    assert machine.memory(tree(tmp_path, **limits)) == (512 * MIB, 512 * MIB)


def test_hardware_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores of two threads, numbered as Linux does; the process may use all of them but one."""
    siblings = {f"sys__devices__system__cpu__cpu{n}__topology__thread_siblings_list": f"{n % 4},{n % 4 + 4}\n"
                for n in range(8)}  # fmt: skip
    root = tree(tmp_path, **siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 4, 5, 6, 7})
    assert (machine.cores(root), machine.hardware_threads(root)) == (4, 7)
    assert machine.cpus(root) == [0, 1, 2, 7, 4, 5, 6]
    tree(tmp_path, **{"sys__fs__cgroup__cpu.max": "300000 100000"})
    assert (machine.cores(root), machine.hardware_threads(root)) == (3, 3)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("350000 100000", 3), ("1000 100000", 1), ("", 64)])
def test_cores_are_those_of_the_process_and_its_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert machine.cores(tree(tmp_path, **{"sys__fs__cgroup__cpu.max": quota})) == cores


def test_this_machine_agrees_with_psutil() -> None:
    found = machine.detect("cpu")
    assert found.device == "cpu"
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert 0 < found.memory_free_bytes <= found.memory_bytes <= psutil.virtual_memory().total


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, torch: str = "2.11.0+cu130") -> None:
    """Puts a program called nvidia-smi on the path, and pretends this version of torch."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(metadata, "version", lambda package: torch)


TWO_GPUS = "0, GPU-aaa, NVIDIA H200, 143771, 143000\n1, GPU-bbb, NVIDIA L4, 23034, 22000"


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "NVIDIA H200"), ("1", "NVIDIA L4"), ("GPU-bbb,0", "NVIDIA L4"), ("", None), ("7", None)],
)
def test_the_first_visible_gpu_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str | None
) -> None:
    nvidia_smi(tmp_path, monkeypatch, TWO_GPUS)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = machine.detect()
    assert found.device == ("cpu" if name is None else "cuda")
    if name is not None:
        assert found.device_name == name
        assert found.memory_bytes == (143771 if name == "NVIDIA H200" else 23034) * MIB
    assert machine.detect("cpu").device == "cpu"


def test_a_gpu_without_a_torch_for_it_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, TWO_GPUS, torch="2.13.0+cpu")
    assert machine.detect().device == "cpu"


def test_without_nvidia_smi_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, TWO_GPUS)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")

    class Driver:
        error = 0

        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuInit(self, flags: int) -> int:
            return self.error

        def cuDeviceGet(self, device: object, ordinal: int) -> int:
            return ordinal

        def cuDeviceGetName(self, name: Any, size: int, device: object) -> int:
            name.value = b"NVIDIA H200"
            return 0

        def cuDeviceTotalMem_v2(self, total: Any, device: object) -> int:
            total._obj.value = 141 << 30
            return 0

    monkeypatch.setattr("ctypes.CDLL", Driver)
    assert machine._gpu() == ("NVIDIA H200", 141 << 30, 141 << 30)
    Driver.error = 100  # no device
    assert machine._gpu() is None
    monkeypatch.setattr("ctypes.CDLL", nothing)
    assert machine._gpu() is None


def nothing(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_detection_does_not_import_torch() -> None:
    code = "import sys; from sgl.engine.base.machine import detect; detect(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
