"""What --quantization and --torchao-config make of floating-point weights, and what they may say of a quantized
checkpoint; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from sgl.engine.base.errors import ConfigError
from sgl.kernels.ops.linear import QuantizedWeight, StoredWeight
from sgl.kernels.registry import Kernels
from sgl.quant.formats.bitsandbytes import Codes4
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.packed import round_between


class Rounding(Protocol):
    """What is made of a weight in floating point while it is loaded."""

    @property
    def label(self) -> str: ...

    def round(self, weight: Tensor, kernels: Kernels) -> StoredWeight: ...


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Symmetric integers: their bits, and how many inputs of an output share a scale (None: all)."""

    bits: Literal[4, 8]
    group: int | None = None
    weight_only: bool = False

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    def round(self, weight: Tensor, kernels: Kernels) -> StoredWeight:
        rounded: QuantizedWeight = kernels["weight.round"](weight, self.bits, self.group or weight.shape[1])
        return QuantizedWeight(
            rounded.values, rounded.scales, None, self.bits, rounded.group, weight_only=self.weight_only
        )


@dataclass(frozen=True, slots=True)
class AffineFormat:
    """Integers of 4 bits between the least and the greatest number of every ``group`` inputs, with zero points."""

    group: int

    @property
    def label(self) -> str:
        return "int4"

    def round(self, weight: Tensor, kernels: Kernels) -> StoredWeight:
        return round_between(weight, 4, self.group)


class Encoder(Protocol):
    """The part of a scheme that rounding needs."""

    @property
    def label(self) -> str: ...

    def encode(self, weight: Tensor) -> dict[str, Tensor]: ...

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> StoredWeight: ...


@dataclass(frozen=True, slots=True)
class AsStored:
    """A weight as a checkpoint in some scheme would hold it."""

    scheme: Encoder

    @property
    def label(self) -> str:
        return self.scheme.label

    def round(self, weight: Tensor, kernels: Kernels) -> StoredWeight:
        return self.scheme.decode(self.scheme.encode(weight), *weight.shape)


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """The rounding of all linear layers, with exceptions by the path of a layer; None leaves a layer as it is."""

    default: Rounding | None = None
    exceptions: Mapping[str, Rounding | None] = field(default_factory=dict)

    def format_for(self, path: str) -> Rounding | None:
        return self.exceptions.get(path, self.default)


INT8 = WeightFormat(8)

FORMATS: Mapping[str, WeightFormat] = {
    "int8": INT8,
    "int4-g32": WeightFormat(4, 32),
    "int4-g64": WeightFormat(4, 64),
    "int4-g128": WeightFormat(4, 128),
}
"""The names of --quantization that round to integers which the integer kernels take as they are."""

ONLINE: Mapping[str, Rounding] = {
    **FORMATS,
    "int4": FORMATS["int4-g128"],
    "fp8": AsStored(Float8("channel", "token")),
    "nf4": AsStored(Codes4("nf4")),
}
"""What --quantization makes of the weights of an unquantized checkpoint."""

TORCHAO: Mapping[str, Rounding] = {
    "int8dq": INT8,
    "int8wo": WeightFormat(8, weight_only=True),
    "fp8wo": AsStored(Float8("channel", "none")),
    "fp8dq-per_tensor": AsStored(Float8("tensor", "token")),
    "fp8dq-per_row": AsStored(Float8("channel", "token")),
    **{f"int4wo-{group}": AffineFormat(group) for group in (32, 64, 128, 256)},
}
"""The names of --torchao-config."""

_DECLARED: Mapping[str, tuple[str, ...]] = {
    "compressed-tensors": ("compressed-tensors", "fp8", "int8", "int4", "w8a8_int8", "w8a8_fp8"),
    "fp8": ("fp8",),
    "gptq": ("gptq", "gptq_marlin", "marlin"),
    "awq": ("awq", "awq_marlin"),
    "bitsandbytes": ("bitsandbytes", "nf4"),
    "modelopt": ("modelopt",),
    "torchao": ("torchao",),
    "gguf": ("gguf",),
}
"""The names of --quantization that are true of a checkpoint, by its method."""


def rounding(quantization: str, torchao: str, head: str, stored: str | None) -> QuantConfig:
    """What becomes of weights in floating point under --quantization and --torchao-config.

    A head, whose errors become scores directly, has at least 8 bits.

    Args:
        head: the path of the head.
        stored: the method of the checkpoint if it is quantized.

    Raises:
        ConfigError: the options contradict each other or the checkpoint.
    """
    name, option, online = quantization, "--quantization", ONLINE
    if torchao != "none":
        if quantization != "none":
            message = f"--torchao-config {torchao} and --quantization {quantization} both say how to round; drop one."
            raise ConfigError(message, param="--torchao-config")
        name, option, online = torchao, "--torchao-config", TORCHAO
    if stored is not None:
        if name == "none" or (torchao == "none" and name in _DECLARED[stored]):
            return QuantConfig()
        raise ConfigError(
            f"{option} {name} contradicts the checkpoint, which is quantized already ({stored}): drop the option.",
            param=option,
        )
    if name == "none":
        return QuantConfig()
    if name not in online:
        raise ConfigError(
            f"{option} {name} is for checkpoints that were quantized so, and this one is not quantized; "
            f"drop it, or round while loading with one of {', '.join(online)}.",
            param=option,
        )
    chosen = online[name]
    return QuantConfig(chosen, {head: INT8 if isinstance(chosen, WeightFormat) and not chosen.weight_only else None})
