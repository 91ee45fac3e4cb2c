"""Takes weights that no kernel runs to the nearest layout that one does, and keeps count of what that adds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgl.kernels.ops.linear import QuantizedWeight, StoredWeight
from sgl.kernels.registry import Kernels

_GROUP = 32


@dataclass(frozen=True, slots=True)
class Repack:
    """What became of one weight; the error is that of its numbers, relative to their root mean square."""

    path: str
    format: str
    error: float


class Repacks:
    """The weights that were repacked, in the order of loading."""

    def __init__(self) -> None:
        self.done: list[Repack] = []

    def repack(self, path: str, weight: StoredWeight, kernels: Kernels) -> QuantizedWeight:
        """Up to 4 bits become int4 with a scale for 32 inputs, more become int8 with a scale per output."""
        if isinstance(weight, QuantizedWeight) and weight.fits_integer_products and weight.offsets is None:
            self.done.append(Repack(path, f"int{weight.bits}", 0.0))
            return replace(weight, weight_only=False)
        exact = weight.dequantize()
        rounded: QuantizedWeight
        if weight.bits <= 4:
            rounded = kernels["weight.round"](exact.bfloat16(), 4, _GROUP)
        else:
            rounded = kernels["weight.round"](exact.bfloat16(), 8, exact.shape[1])
        size = exact.norm()
        error = float((rounded.dequantize() - exact).norm() / size) if size > 0 else 0.0
        self.done.append(Repack(path, f"int{rounded.bits}", error))
        return rounded

    def summary(self) -> str:
        """One sentence; empty if nothing was repacked."""
        if not self.done:
            return ""
        worst = max(self.done, key=lambda repack: repack.error)
        formats = ", ".join(sorted({repack.format for repack in self.done}))
        mean = sum(repack.error for repack in self.done) / len(self.done)
        return (
            f"{len(self.done)} weights were repacked to {formats} (--allow-repack): this adds a relative error of "
            f"{mean:.2%} on average, {worst.error:.2%} in {worst.path}, and rounds activations to int8."
        )
