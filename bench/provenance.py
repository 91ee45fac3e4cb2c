"""What must be known to believe a result: versions, machine, flags, seed and data; measures nothing."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import sgl
from sgl.bench.constraint import described
from sgl.bench.data import Sample, digest, num_requests
from sgl.engine.base import machine
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import name_of as name_of
from sgl.engine.base.types import Grammar

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "httpx")


def describe() -> dict[str, str | int | float]:
    """This machine; its ``fingerprint`` is also the one that tuned values are kept under."""
    return machine.describe(machine.detect())


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that matter for speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


SCHEMA = 1
"""Of result lines; another number where a key changes its meaning."""


def head(
    kind: str, flags: Mapping[str, Any], seed: int, cache_state: str, data: Data, grammar: Grammar | None = None
) -> dict[str, Any]:
    """What every result line begins with: which benchmark it is of, and where it comes from.

    Args:
        kind: one-batch, offline or serving.
        flags: all of them, without secrets.
        cache_state: of prefixes when the first request came: cold, warm or any.
        grammar: that the answers were kept to.
    """
    return {
        "kind": kind,
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "sgl_version": sgl.__version__,
        "versions": versions(),
        "machine": describe(),
        "flags": dict(flags),
        "seed": seed,
        "cache_state": cache_state,
        "dataset_name": data.name,
        "dataset_hash": data.hash,
        "data": asdict(data),
        **described(grammar),
    }


@dataclass(frozen=True)
class Data:
    """The identity of what was asked: equal hashes are equal prompts, answer lengths and times, in order."""

    name: str
    hash: str
    path: str
    num_requests: int

    @staticmethod
    def of(name: str, samples: Sequence[Sample], path: str = "") -> Data:
        return Data(name, digest(samples), path, num_requests(samples))


def check_output(file: str) -> None:
    """Finds out before a run that its result cannot be written; a run that is broken off leaves no empty file.

    Raises:
        ConfigError: the file cannot be opened.
    """
    if not file:
        return
    is_new = not Path(file).exists()
    append(file)
    if is_new:
        Path(file).resolve().unlink()  # a link to it stays


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
