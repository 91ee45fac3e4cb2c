"""Which layer's weights are stored in which format; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Integer weights: their bits, and how many inputs of an output share a scale (None: all)."""

    bits: Literal[4, 8]
    group: int | None = None

    @property
    def label(self) -> str:
        return f"int{self.bits}"


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """The format of all linear layers, with exceptions by the path of a layer; None leaves a layer as it is."""

    default: WeightFormat | None = None
    exceptions: Mapping[str, WeightFormat | None] = field(default_factory=dict)

    def format_for(self, path: str) -> WeightFormat | None:
        return self.exceptions.get(path, self.default)


INT8 = WeightFormat(8)

FORMATS: Mapping[str, WeightFormat] = {
    "int8": INT8,
    "int4-g32": WeightFormat(4, 32),
    "int4-g64": WeightFormat(4, 64),
    "int4-g128": WeightFormat(4, 128),
}
"""What --quantization makes of the weights while they are loaded."""


def online(name: str, head: str) -> QuantConfig:
    """The formats behind --quantization ``name``: a head, whose errors become scores directly, has at least 8 bits."""
    return QuantConfig() if name == "none" else QuantConfig(FORMATS[name], {head: INT8})
