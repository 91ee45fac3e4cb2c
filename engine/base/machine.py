"""Finds out what this process may use: cores, memory, accelerator. Never imports torch."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgl.engine.base import env
from sgl.engine.base.device import detect_isa


@dataclass(frozen=True)
class Machine:
    """What the model may run on.

    ``memory_bytes`` and ``memory_free_bytes`` are the device's: the GPU's, or what this process's container may use.
    ``isa`` is one of `device.CPU_ISAS`.
    """

    cores: int
    memory_bytes: int
    memory_free_bytes: int
    device: Literal["cpu", "cuda"]
    isa: str
    device_name: str = ""
    entropy: int = 0


def describe(machine: Machine) -> dict[str, str | int | float]:
    """The machine, by what does not change from run to run; ``fingerprint`` names all of it."""
    facts: dict[str, str | int | float] = {
        "device": machine.device,
        "device_name": machine.device_name,
        "cores": machine.cores,
        "isa": machine.isa,
        "memory_gib": round(machine.memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return {"fingerprint": name_of(facts), **facts}


def name_of(facts: object) -> str:
    """A short name for a JSON value: equal for equal values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def detect(device: str = "auto", root: Path = Path("/")) -> Machine:
    """Describes this machine for ``device`` (auto, cpu, cuda). ``root`` is where /proc and /sys stand."""
    name, total, free = "", 0, 0
    gpu = None if device == "cpu" else _gpu()
    if gpu is None:
        total, free = memory(root)
    else:
        name, total, free = gpu
    return Machine(
        cores=cores(root),
        memory_bytes=total,
        memory_free_bytes=free,
        device="cpu" if gpu is None else "cuda",
        isa=detect_isa(),
        device_name=name or _cpu_name(root),
        entropy=int.from_bytes(os.urandom(4), "little"),
    )


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, cut to the container's CPU quota.

    Hardware threads of one core count once: they share the units that matrix products and memory reads keep busy.
    """
    siblings = {_siblings(root, cpu) for cpu in os.sched_getaffinity(0)}
    return min(len(siblings), hardware_threads(root))


def hardware_threads(root: Path = Path("/")) -> int:
    """How many threads of this process can run at the same time."""
    quotas = [_quota(_read(folder / "cpu.max")) for folder in _cgroups(root)]
    for folder in _cgroups(root, "cpu"):
        quotas.append(_quota(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"))
    return min([len(os.sched_getaffinity(0)), *(quota for quota in quotas if quota is not None)])


def cpus(root: Path = Path("/")) -> list[int]:
    """Numbers of the processors that this process may use: one of every core, then the cores' other threads."""
    allowed = sorted(os.sched_getaffinity(0))
    first = {_siblings(root, cpu): cpu for cpu in reversed(allowed)}
    return sorted(allowed, key=lambda cpu: (first[_siblings(root, cpu)] != cpu, cpu))


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, free) bytes: the machine's, cut to the container's limit. Caches that can be dropped count as free."""
    info = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    total = int(info["MemTotal"].split()[0]) * 1024
    free = int(info.get("MemAvailable", info["MemFree"]).split()[0]) * 1024
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return total, free


def _gpu() -> tuple[str, int, int] | None:
    """(name, total, free bytes) of the first visible NVIDIA GPU, if torch is built for it."""
    from importlib import metadata

    try:
        if "+cpu" in metadata.version("torch"):
            return None
        query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except metadata.PackageNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError):
        return _driver_gpu()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    visible = env.visible_gpus()
    if visible is not None:
        rows = [row for row in rows if visible and (row[0] == visible[0] or row[1].startswith(visible[0]))]
    if not rows:
        return None
    _, _, name, total, free = rows[0]
    return name, int(total) * 2**20, int(free) * 2**20


def _driver_gpu() -> tuple[str, int, int] | None:
    """The same from the driver itself, as a container may have no nvidia-smi; how much is free it does not tell."""
    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetName(name, len(name), device) or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device):
        return None
    return name.value.decode(errors="replace"), total.value, total.value


def _siblings(root: Path, cpu: int) -> str:
    """The core that a processor is a thread of."""
    return _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _cgroups(root: Path, controller: str = "") -> list[Path]:
    """The folders from this process's control group up to the root: a limit on any of them binds.

    Those of version 2, or of version 1 for a controller. A container may see the path of its host, which is not there.
    """
    lines = [line.split(":", 2) for line in _read(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2]
    path = next((path for _, names, path in lines if controller in names.split(",")), "/")
    top = root / "sys/fs/cgroup" / controller
    if not controller and (top / "unified").is_dir():
        top /= "unified"  # both versions are mounted
    inner = top / path.lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents]


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes of every cgroup that has one."""
    found = []
    for controller, limits, usage in (
        ("", ("memory.max", "memory.high"), "memory.current"),
        ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    ):
        for folder in _cgroups(root, controller):
            for limit in (_read(folder / name) for name in limits):
                if limit.isdigit():
                    found.append((int(limit), _used(_read(folder / usage), _read(folder / "memory.stat"))))
    return found


def _used(used: str, stat: str) -> int:
    """Usage without the file cache, which the kernel drops when memory is short."""
    counts = dict(line.split() for line in stat.splitlines() if len(line.split()) == 2)
    cache = counts.get("total_inactive_file", counts.get("inactive_file", 0))  # total_: with the groups below
    return max(0, int(used or 0) - int(cache))


def _quota(text: str) -> int | None:
    """Whole cores of ``quota period``, at least one; None for no limit."""
    parts = text.split()
    if len(parts) != 2 or not parts[0].isdigit() or not parts[1].isdigit():
        return None
    return max(1, int(parts[0]) // int(parts[1]))


def _cpu_name(root: Path) -> str:
    line = next((x for x in _read(root / "proc/cpuinfo").splitlines() if x.startswith("model name")), "")
    return line.partition(":")[2].strip() or "CPU"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
