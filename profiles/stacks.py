"""Which Python functions sampled stacks spend their time in; reads speedscope's files, ours and py-spy's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sgl.engine.base.errors import SglError

_SECONDS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}


class _Frame(msgspec.Struct):
    name: str
    file: str | None = ""
    line: int | None = 0


class _Shared(msgspec.Struct):
    frames: list[_Frame]


class _Profile(msgspec.Struct):
    unit: str
    samples: list[list[int]]
    weights: list[float]


class _File(msgspec.Struct):
    shared: _Shared
    profiles: list[_Profile]


@dataclass(frozen=True)
class Function:
    """Time in a function: by itself, and with all that it calls."""

    name: str
    place: str
    own_s: float
    total_s: float


def functions(files: Iterable[Path]) -> list[Function]:
    """Of all processes and threads together; those that spend most by themselves first.

    Raises:
        SglError: a file is none of speedscope's.
    """
    own_s: dict[tuple[str, str], float] = defaultdict(float)
    total_s: dict[tuple[str, str], float] = defaultdict(float)
    for path in files:
        content = _read(path)
        places = [(frame.name, f"{frame.file}:{frame.line}") for frame in content.shared.frames]
        for profile in content.profiles:
            unit_s = _SECONDS.get(profile.unit, 1.0)
            for sample, weight in zip(profile.samples, profile.weights, strict=False):
                if sample:
                    own_s[places[sample[-1]]] += weight * unit_s
                for name in {places[number] for number in sample}:
                    total_s[name] += weight * unit_s
    names = sorted(total_s, key=lambda name: -own_s[name])
    return [Function(*name, own_s[name], total_s[name]) for name in names]


def _read(path: Path) -> _File:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
        if any(number >= len(content.shared.frames) for p in content.profiles for s in p.samples for number in s):
            raise ValueError("a sample names a frame that is not there")
    except OSError as error:
        raise SglError(f"{path} cannot be read: {error.strerror}.", param="trace") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise SglError(f"{path} is no speedscope file: {error}.", param="trace") from None
    return content
