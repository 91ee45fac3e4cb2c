"""Linear layers, which know shapes and names; how weights are stored is known to schemes (`sgl.quant.scheme`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.weights import Build, StackedWeight, WeightSlot
from sgl.kernels.ops.linear import (
    CodedWeight,
    Float8Weight,
    Form,
    LinearFn,
    QuantizedWeight,
    Weight,
    dequantized,
    is_finite,
)
from sgl.kernels.registry import REFERENCE


class Linear:
    """``y [T, out] = x [T, in] @ W.T + b`` with W stacked from parts, each under a name of its own in the checkpoint.

    Args:
        names: the modules' names in the checkpoint; a single name holds all parts.
        parts: output features of each part.
        transposed: the checkpoint holds W.T.
        form: what becomes of the product.
        arrange: the checkpoint's rows into the order of the parts.
    """

    def __init__(
        self,
        build: Build,
        names: tuple[str, ...],
        in_features: int,
        parts: Sequence[int],
        bias: bool,
        transposed: bool = False,
        form: Form = "plain",
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.build = build
        self.names = names
        self.in_features = in_features
        self.parts = tuple(parts) if len(names) > 1 else (sum(parts),)
        self.bias = bias
        self.form: Form = form
        self.transposed = transposed
        self.arrange = arrange
        self.state: LinearFn
        self.nbytes = 0
        self.format = ""
        self._weight = StackedWeight((sum(self.parts), in_features), build.dtype, build.device)
        self._bias = build.parameter(sum(self.parts)) if bias else None
        self.slots = self._slots()
        build.leaves.append(self)

    def finalize(self) -> None:
        weight, bias = self._weight.take_weight(), None if self._bias is None else self._bias.take()
        prepared = prepare(self.build, self.names[0], weight, bias, self.form)
        self.state, self.format = prepared.run, prepared.format
        own = weight.nbytes if isinstance(weight, Tensor) else 0
        self.nbytes = (prepared.run.packed_bytes or own) + (0 if bias is None else bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.state(x)
        return y

    def _slots(self) -> list[WeightSlot]:
        slots, offset = [], 0
        for name, part in zip(self.names, self.parts, strict=True):
            shape = (self.in_features, part) if self.transposed else (part, self.in_features)
            slots.append(WeightSlot(f"{name}.weight", shape, self._weight, offset, self.transposed, self.arrange))
            if self._bias is not None:
                slots.append(WeightSlot(f"{name}.bias", (part,), self._bias, offset, arrange=self.arrange))
            offset += part
        return slots


@dataclass(frozen=True, slots=True)
class Prepared:
    """A layer's function, and what its weights are computed with, such as ``bfloat16`` or ``int8``."""

    run: LinearFn
    format: str


def prepare(build: Build, path: str, weight: Weight, bias: Tensor | None, form: Form) -> Prepared:
    """The layer at ``path``: a weight in floating point is rounded first if the model is to be.

    Raises:
        ModelError: a weight that is to be rounded holds no numbers.
    """
    rounding = build.quantization.format_for(path)
    if isinstance(weight, Tensor) and rounding is not None:
        weight = rounding.round(weight, build.kernels)
        if not is_finite(weight):
            raise ModelError(f"{path}.weight holds NaN or infinite values; fetch the checkpoint again.")
    op = op_of(weight, build)
    if op == "linear" and not isinstance(weight, Tensor) and build.repacks is not None:
        weight = build.repacks.repack(path, weight, build.kernels)
        op = op_of(weight, build)
    if op == "linear":
        run = build.kernels[op](dequantized(weight).to(build.dtype), bias, form, build.allocate)
        return Prepared(run, str(build.dtype).removeprefix("torch."))
    return Prepared(build.kernels[op](weight, bias, form, build.allocate), _format(weight))


def _format(weight: Weight) -> str:
    if isinstance(weight, QuantizedWeight):
        return f"int{weight.bits}"
    return "fp8" if isinstance(weight, Float8Weight) else "codes of 4 bits"


def op_of(weight: Weight, build: Build) -> str:
    """What computes with a weight; ``linear`` does with every one, decoded, where nothing does with its own numbers."""
    on_cpu, kernels = build.device.type == "cpu", build.kernels
    if isinstance(weight, Float8Weight) and kernels.name("linear.fp8") != REFERENCE:
        return "linear.fp8"
    if isinstance(weight, Float8Weight | CodedWeight):
        has_kernel = kernels.name("linear.coded") != REFERENCE and weight.fits_coded_products
        return "linear.coded" if has_kernel else "linear"
    if not isinstance(weight, QuantizedWeight):
        return "linear"
    if weight.fits_integer_products:
        may_round = weight.bits == 4 and on_cpu and not build.exact_activations
        if not weight.weight_only or (may_round and kernels.name("linear.quantized") != REFERENCE):
            return "linear.quantized"
    has_kernel = kernels.name("linear.weight_only") != REFERENCE and (on_cpu or weight.fits_wide_steps)
    return "linear.weight_only" if weight.weight_only and has_kernel else "linear"
