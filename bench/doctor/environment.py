"""Examines the environment: packages, compiler, limits, disk. Installs nothing and prints nothing."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sgl
from sgl.engine.base.budget import size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["ok", "weak", "broken"]
"""As it should be; something is slower or not there; something will fail."""

LEAST_FILES = 4096
LEAST_DISK_BYTES = 5 << 30

EXTRAS = {
    "grammar": "other grammar backends (--grammar-backend xgrammar, outlines)",
    "quant": "sgl quantize with calibration",
    "eval": "sgl eval --lm-eval, data from the Hub, json-schema",
    "gpu": "Triton and FlashInfer kernels",
}
"""What each extra of the package is for."""

SHOWN = ("torch", "transformers", "tokenizers")
Version = Callable[[str], str | None]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        fix: the line that mends it.
    """

    topic: str
    state: State
    told: str
    fix: str = ""


def examine(*, has_gpu: bool, cache: Path, compiler_trouble: str) -> list[Finding]:
    """
    Args:
        cache: where sgl keeps what it compiles and measures.
        compiler_trouble: why the C++ kernels cannot run; empty if they do.
    """
    return [
        *packages(has_gpu),
        compiler(compiler_trouble),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        disk(cache),
        profiler(shutil.which("nsys"), has_gpu),
    ]


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def packages(
    has_gpu: bool, requirements: Sequence[str] | None = None, version: Version = installed
) -> Iterator[Finding]:
    """What the package says that it needs, against what is there."""
    from packaging.requirements import Requirement

    yield Finding("sgl", "ok", f"{sgl.__version__} on Python {platform.python_version()}")
    if requirements is None:
        try:
            requirements = metadata.requires("sgl") or []
        except metadata.PackageNotFoundError:
            told = "sgl is a checkout on the path, not an installed package: versions are not checked."
            yield Finding("packages", "weak", told)
            return
    wanted = [Requirement(text) for text in requirements]
    base = [need for need in wanted if _belongs(need, "")]
    wrong = _unmet(base, version)
    for need, found in wrong:
        told = f"{need.name} {found} is not {need.specifier}" if found else f"{need.name} is not installed"
        yield Finding("packages", "broken", told, f"pip install '{need.name}{need.specifier}'")
    if not wrong:
        told = ", ".join(f"{name} {version(name)}" for name in SHOWN)
        yield Finding("packages", "ok", f"all {len(base)} as they should be, among them {told}")
    for extra, purpose in EXTRAS.items():
        if extra != "gpu" or has_gpu:
            needs = [need for need in wanted if not _belongs(need, "") and _belongs(need, extra)]
            yield _extra(extra, purpose, _unmet(needs, version))


def compiler(trouble: str) -> Finding:
    """What makes the CPU's C++ kernels."""
    if not trouble:
        return Finding("C++ kernels", "ok", "compiled for this processor")
    return Finding("C++ kernels", "weak", f"{trouble}: linear layers and attention are slower", "apt-get install g++")


def open_files(limit: int) -> Finding:
    """Every connection of a server is one."""
    if limit >= LEAST_FILES or limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}")
    told = f"up to {limit}: a server can hold fewer connections than that"
    return Finding("open files", "weak", told, "ulimit -n 65536")


def disk(cache: Path) -> Finding:
    """Where compiled kernels and measurements are kept."""
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        told = f"{cache} cannot be written: kernels are compiled at every start"
        return Finding("cache", "weak", told, "export XDG_CACHE_HOME=/a/folder/that/can")
    if free < LEAST_DISK_BYTES:
        return Finding("cache", "weak", f"{cache}: only {size(free)} of the disk are free")
    return Finding("cache", "ok", f"{cache}: {size(free)} free")


def profiler(nsys: str | None, has_gpu: bool) -> Finding:
    """What `sgl profile nsys` runs."""
    if nsys:
        return Finding("nsys", "ok", nsys)
    if not has_gpu:
        return Finding("nsys", "ok", "not here, and not needed without a GPU")
    return Finding("nsys", "weak", "not on the path: no `sgl profile nsys`", "apt-get install nsight-systems-cli")


def _extra(extra: str, purpose: str, unmet: Sequence[tuple[Requirement, str | None]]) -> Finding:
    if not unmet:
        return Finding(f"extra {extra}", "ok", purpose)
    told = ", ".join(f"{need.name} {found or 'missing'}" for need, found in unmet)
    return Finding(f"extra {extra}", "weak", f"{told}; it is for {purpose}", f"pip install 'sgl[{extra}]'")


def _belongs(need: Requirement, extra: str) -> bool:
    """Whether a requirement is one of an extra; of none, if it is always needed."""
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _unmet(needs: Sequence[Requirement], version: Version) -> list[tuple[Requirement, str | None]]:
    """Requirements that are not met, with the version that is there."""
    found = [(need, version(need.name)) for need in needs]
    return [
        (need, there) for need, there in found if there is None or not need.specifier.contains(there, prereleases=True)
    ]
