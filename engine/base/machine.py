"""Finds out what this process may use: cores, memory, accelerator. Never imports torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib import metadata
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
    """Cores that this process may use: its affinity, cut to the container's CPU quota."""
    allowed = len(os.sched_getaffinity(0))
    quotas = [_quota(_read(folder / "cpu.max")) for folder in _cgroups(root)]
    legacy = _quota(f"{_read(root / 'sys/fs/cgroup/cpu/cpu.cfs_quota_us')} {_period(root)}")
    return max(1, min([allowed, *(q for q in [*quotas, legacy] if q is not None)]))


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
    try:
        if "+cpu" in metadata.version("torch"):
            return None
        query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, metadata.PackageNotFoundError):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    visible = env.visible_gpus()
    if visible is not None:
        rows = [row for row in rows if visible and (row[0] == visible[0] or row[1].startswith(visible[0]))]
    if not rows:
        return None
    _, _, name, total, free = rows[0]
    return name, int(total) * 2**20, int(free) * 2**20


def _cgroups(root: Path) -> list[Path]:
    """The cgroup v2 folders from this process's up to the root: a limit on any of them binds."""
    top = root / "sys/fs/cgroup"
    line = next((x for x in _read(root / "proc/self/cgroup").splitlines() if x.startswith("0::")), "0::/")
    inner = top / line[3:].lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents]


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes of every cgroup that has one."""
    pairs = [(_read(f / "memory.max"), _read(f / "memory.current"), _read(f / "memory.stat")) for f in _cgroups(root)]
    legacy = root / "sys/fs/cgroup/memory"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    pairs.append((_read(legacy / names[0]), _read(legacy / names[1]), _read(legacy / names[2])))
    return [(int(limit), _used(used, stat)) for limit, used, stat in pairs if limit.isdigit()]


def _used(used: str, stat: str) -> int:
    """Usage without the file cache, which the kernel drops when memory is short."""
    counts = dict(line.split() for line in stat.splitlines() if len(line.split()) == 2)
    return max(0, int(used or 0) - int(counts.get("inactive_file", 0)))


def _quota(text: str) -> int | None:
    """Whole cores of ``quota period``, at least one; None for no limit."""
    parts = text.split()
    if len(parts) != 2 or not parts[0].isdigit() or not parts[1].isdigit():
        return None
    return max(1, int(parts[0]) // int(parts[1]))


def _period(root: Path) -> str:
    return _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")


def _cpu_name(root: Path) -> str:
    line = next((x for x in _read(root / "proc/cpuinfo").splitlines() if x.startswith("model name")), "")
    return line.partition(":")[2].strip() or "CPU"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
