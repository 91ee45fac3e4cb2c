"""What a quantization reports while it runs and when it is over: errors by module, sizes, memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

_ROWS = 1024


class Watcher(Protocol):
    """Takes notice of the progress."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of so many steps, of which some were done before."""
        ...

    def step(self, note: str, count: int = 1) -> None:
        """Steps of the stage are over; ``note`` says where it stands."""
        ...


@dataclass(frozen=True, slots=True)
class ModuleError:
    """What rounding did to one weight: sums of squares, and bytes before and after."""

    module: str
    label: str
    error: float
    signal: float
    before: int
    after: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LayerError:
    """A numbered layer: the root of its mean squared error as a part of that of its weights, and its worst module."""

    layer: str
    label: str
    relative: float
    worst: str
    worst_relative: float
    before: int
    after: int


def relative(error: float, signal: float) -> float:
    """Root mean square of the error as a part of the weights'."""
    return (error / signal) ** 0.5 if signal else 0.0


def measure(module: str, label: str, weight: Tensor, decoded: Tensor, after: int) -> ModuleError:
    """Compares a weight ``[N, K]`` with what the file will hold, some rows at a time."""
    error = signal = 0.0
    for first in range(0, len(weight), _ROWS):
        exact = weight[first : first + _ROWS].float()
        signal += float(exact.square().sum(dtype=torch.float64))
        error += float((decoded[first : first + _ROWS] - exact).square().sum(dtype=torch.float64))
    return ModuleError(module, label, error, signal, weight.nbytes, after)


def summarize(errors: Iterable[ModuleError], layer_of: Mapping[str, str]) -> list[LayerError]:
    """By layer, in the order of the numbers."""
    groups: dict[str, list[ModuleError]] = {}
    for error in errors:
        groups.setdefault(layer_of[error.module], []).append(error)
    return [_layer(name, groups[name]) for name in sorted(groups, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _layer(name: str, errors: list[ModuleError]) -> LayerError:
    worst = max(errors, key=lambda item: relative(item.error, item.signal))
    return LayerError(
        layer=name,
        label=" + ".join(dict.fromkeys(item.label for item in errors)),
        relative=relative(sum(item.error for item in errors), sum(item.signal for item in errors)),
        worst=worst.module.removeprefix(f"{name}."),
        worst_relative=relative(worst.error, worst.signal),
        before=sum(item.before for item in errors),
        after=sum(item.after for item in errors),
    )


class Memory:
    """The memory of this process from here on: what it holds now, and the most it held since."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # then the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
        self.base_bytes = self._field("VmRSS")

    @property
    def peak_bytes(self) -> int:
        return self._field("VmHWM")

    @property
    def grown_bytes(self) -> int:
        """By how much the peak is above what was held at the beginning."""
        return max(0, self.peak_bytes - self.base_bytes)

    @staticmethod
    def _field(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return 0
