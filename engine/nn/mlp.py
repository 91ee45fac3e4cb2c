"""The feed-forward of a layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.spec import MlpSpec
from sgl.engine.nn.weights import Build

# (a checkpoint's hidden_act, gated) -> the op of the first product, and the ops behind it
_OPS: dict[tuple[str, bool], tuple[str, tuple[str, ...]]] = {
    ("silu", True): ("linear.silu_mul", ()),
    ("gelu", False): ("linear", ("act.gelu",)),
    ("gelu_new", False): ("linear", ("act.gelu_tanh",)),
    ("gelu_pytorch_tanh", False): ("linear", ("act.gelu_tanh",)),
}


class Mlp:
    """``down(act(up(x)))``; gated, up computes gate and up side by side in one product."""

    def __init__(self, build: Build, layer: int, spec: MlpSpec, hidden_size: int) -> None:
        names = build.names
        size = spec.intermediate_size
        parts = (size, size) if spec.gated else (size,)
        up_names = tuple(name.format(layer) for name in names.up)
        product, following = _ops(spec)
        self._acts: list[Callable[[Tensor], Tensor]] = [build.kernels[op] for op in following]
        self.up = Linear(build, up_names, hidden_size, parts, spec.bias, names.transposed, product)
        down_names = (names.down.format(layer),)
        self.down = Linear(build, down_names, size, (hidden_size,), spec.bias, names.transposed)

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, H] -> [T, H]``, a new tensor."""
        x = self.up(x)
        for act in self._acts:
            x = act(x)
        return self.down(x)


def _ops(spec: MlpSpec) -> tuple[str, tuple[str, ...]]:
    ops = _OPS.get((spec.activation, spec.gated))
    if ops is None:
        known = ", ".join(activation for activation, gated in _OPS if gated == spec.gated)
        form = "a gated" if spec.gated else "a plain"
        raise ModelError(
            f"hidden_act {spec.activation!r} is not supported for {form} feed-forward; supported: {known}."
        )
    return ops
