"""What must be known to believe a result: versions, machine, flags, seed and data; measures nothing."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import sgl
from sgl.bench.data import Sample, digest
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import Machine, detect

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "httpx")


def describe(machine: Machine | None = None) -> dict[str, str | int | float]:
    """The machine, by what does not change from run to run; ``fingerprint`` names all of it."""
    machine = machine or detect()
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


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that matter for speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(flags: Mapping[str, Any], seed: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """The part of a result line that says where it comes from."""
    return {
        "sgl_version": sgl.__version__,
        "versions": versions(),
        "flags": dict(flags),
        "seed": seed,
        "dataset_hash": digest(samples),
        "machine": describe(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def check_output(file: str) -> None:
    """Finds out before a run that its result cannot be written.

    Raises:
        ConfigError: the file cannot be opened.
    """
    if file:
        append(file)


def append(file: str, *results: Mapping[str, Any]) -> None:
    """Adds results to a file, one JSON object a line.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with Path(file).open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(result, allow_nan=False) + "\n" for result in results)
    except OSError as error:
        raise ConfigError(f"--output-file {file} cannot be written: {error.strerror}.", param="--output-file") from None
