"""A linear layer as a function of its input, prepared once from its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from sgl.kernels.ops.activation import silu_mul
from sgl.kernels.registry import op


class LinearFn(Protocol):
    """``y [T, N] = x [T, K] @ weight.T + bias`` for a weight that was given once."""

    @property
    def packed_bytes(self) -> int:
        """Memory of its own copy of the weight; 0 where it uses the tensor that it was given."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PlainLinear:
    weight: Tensor
    bias: Tensor | None
    packed_bytes: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """``silu(gate) * up`` of a linear layer that computes both side by side."""

    linear: LinearFn

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(self.linear(x))


@dataclass(frozen=True, slots=True)
class Float32Linear:
    """A linear layer whose result is converted to float32."""

    linear: LinearFn

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x).float()


@op("linear")
def linear(weight: Tensor, bias: Tensor | None) -> LinearFn:
    """Prepares weight ``[N, K]`` and bias ``[N]``; the caller drops them unless it shares them."""
    return PlainLinear(weight, bias)


@op("linear.silu_mul")
def linear_silu_mul(weight: Tensor, bias: Tensor | None) -> LinearFn:
    """As `linear` for a weight ``[2F, K]`` of gates, then ups; the function returns ``silu(gate) * up`` ``[T, F]``."""
    return GatedLinear(linear(weight, bias))


@op("linear.float32")
def linear_float32(weight: Tensor, bias: Tensor | None) -> LinearFn:
    """As `linear`, with a result in float32: the scores of tokens, among which ties should be rare."""
    return Float32Linear(linear(weight, bias))
