"""The way of a tensor from a checkpoint to its layer: named slots, destinations, and the layers that wait for them.

A destination is allocated when its first tensor arrives and is given up when the layer takes it, so a model is never
in memory twice, whatever the layer makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.spec import WeightNames
from sgl.kernels.ops.linear import Allocate, StoredWeight, Weight, arranged, dequantized, fresh, stacked
from sgl.kernels.registry import Kernels
from sgl.quant.config import QuantConfig
from sgl.quant.repack import Repacks
from sgl.quant.scheme import Encoded


class Parameter:
    """A tensor to be filled by one or more slots."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self._tensor: Tensor | None = None

    def write(self, source: Weight, offset: int) -> None:
        """Copies (and converts) source to the rows from ``offset`` on."""
        if self._tensor is None:
            self._tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        tensor = dequantized(source)
        self._tensor.narrow(0, offset, tensor.shape[0]).copy_(tensor)

    def take(self) -> Tensor:
        """The filled tensor; this object forgets it."""
        assert self._tensor is not None, "taken before it was written"
        tensor, self._tensor = self._tensor, None
        return tensor


class StackedWeight(Parameter):
    """The weight of a linear layer: as a `Parameter` where it comes in floating point, else in its stored numbers."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)
        self._parts: dict[int, StoredWeight] = {}  # by the first of their rows

    def write(self, source: Weight, offset: int) -> None:
        if isinstance(source, Tensor):
            super().write(source, offset)
        else:
            self._parts[offset] = source

    def take_weight(self) -> Weight:
        """The filled weight in the form in which all parts came, or in floating point; this object forgets it."""
        parts, self._parts = self._parts, {}
        if parts and self._tensor is None:
            return stacked([part for _, part in sorted(parts.items())])
        for offset, part in parts.items():
            super().write(part, offset)
        return self.take()


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """A tensor that a checkpoint must hold, and where it goes: rows ``offset ...`` of the destination."""

    name: str
    shape: tuple[int, ...]  # in the checkpoint
    destination: Parameter
    offset: int = 0
    transposed: bool = False  # the checkpoint holds the transpose of what goes to the destination
    arrange: Callable[[Tensor], Tensor] | None = None  # the checkpoint's rows into the destination's order

    def write(self, source: Tensor | Encoded) -> None:
        weight: Weight
        if not isinstance(source, Encoded):
            weight = source.t() if self.transposed else source
        elif self.transposed:
            raise ModelError(f"{self.name}: a transposed weight in {source.scheme.label} is not supported.")
        else:
            weight = source.on(self.destination.device).decode()
        self.destination.write(weight if self.arrange is None else arranged(weight, self.arrange), self.offset)


class Leaf(Protocol):
    """A layer with weights of its own: first its slots are written, then it is finalised once, then it computes."""

    @property
    def slots(self) -> Sequence[WeightSlot]: ...

    @property
    def nbytes(self) -> int:
        """Memory of the finalised weights."""
        ...

    def finalize(self) -> None: ...


@dataclass(slots=True)
class Build:
    """What layers need while a model is put together; ``leaves`` collects them in the order of construction."""

    kernels: Kernels
    dtype: torch.dtype
    device: torch.device
    names: WeightNames
    quantization: QuantConfig = field(default_factory=QuantConfig)
    kv_dtype: torch.dtype | None = None  # what the cache is quantised to
    allocate: Allocate = fresh  # where packed weights go
    exact_activations: bool = False  # weight-only formats meet unrounded inputs, whatever that costs
    repacks: Repacks | None = None  # takes what no kernel runs to the nearest fast layout; None leaves it as it is
    leaves: list[Leaf] = field(default_factory=list)

    def parameter(self, *shape: int) -> Parameter:
        return Parameter(shape, self.dtype, self.device)
