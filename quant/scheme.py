"""What a format of quantized weights is: named tensors, and the exact numbers they stand for; reads no files.

A `Scheme` is the only place that knows how one format lays a weight out. `Linear`, the experts of a mixture, the loader
and the checkpoint writer go through it, so that a new format is one file under ``formats/`` and one parity test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.kernels.ops.linear import StoredWeight


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stored weight: its name behind the module's, and what it may look like."""

    suffix: str
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]  # any of them; none: any shape
    optional: bool = False


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)
_FIX = "fetch the checkpoint again or quantize it anew"


def groups_of(inner: int, group: int) -> int:
    """How many groups of so many inputs there are.

    Raises:
        ValueError: the last would be shorter.
    """
    if inner % group:
        raise ValueError(f"{inner} inputs cannot be shared out to groups of {group}")
    return inner // group


class Scheme(Protocol):
    """How the weight ``[N, K]`` of a linear layer is stored. Schemes hold no weights and are compared by value."""

    @property
    def label(self) -> str:
        """Its short name, such as ``fp8-block`` or ``int4-g128``."""
        ...

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        """The tensors that hold a weight of that shape.

        Raises:
            ValueError: such a weight cannot be stored so; the sentence says why.
        """
        ...

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> StoredWeight:
        """The stored numbers, exactly, in the form that kernels take: integers or fp8 with scales, or float32.

        Raises:
            ValueError: the tensors contradict each other or hold what no weight has; the sentence names the suffix.
        """
        ...


class WritableScheme(Scheme, Protocol):
    """A scheme that the checkpoint writer offers, in the layout of compressed-tensors."""

    @property
    def format(self) -> str:
        """The ``format`` of its config group, such as ``pack-quantized``."""
        ...

    @property
    def entry(self) -> dict[str, Any]:
        """Its config group but for ``targets`` and ``format``: ``weights`` and ``input_activations``."""
        ...

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """A weight ``[N, K]`` rounded to nearest, as tensors by suffix, contiguous and on the weight's device."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A stored weight on its way to the layer that wants it."""

    name: str  # of the module, as the checkpoint calls it
    scheme: Scheme
    tensors: Mapping[str, Tensor]
    shape: tuple[int, int]

    def on(self, device: torch.device) -> Encoded:
        """The same with its tensors on a device, which then decodes them."""
        return replace(self, tensors={suffix: tensor.to(device) for suffix, tensor in self.tensors.items()})

    def decode(self) -> StoredWeight:
        """The exact weight.

        Raises:
            ModelError: the tensors are corrupt; it names the one and the fix.
        """
        for suffix, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise ModelError(f"{self.name}.{suffix} holds NaN or infinite values: {_FIX}.")
        try:
            return self.scheme.decode(self.tensors, *self.shape)
        except ValueError as error:
            raise ModelError(f"{self.name} ({self.scheme.label}): {error}; {_FIX}.") from None

    def dequantize(self) -> Tensor:
        """The exact weight in float32 ``[N, K]``."""
        return self.decode().dequantize()
