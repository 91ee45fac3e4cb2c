"""The feed-forward of a layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.spec import MlpSpec
from sgl.engine.nn.weights import Build
from sgl.kernels.ops.linear import Form

# (a checkpoint's hidden_act, gated) -> the form of the first product, and the ops behind it
_OPS: dict[tuple[str, bool], tuple[Form, tuple[str, ...]]] = {
    ("silu", True): ("gated", ()),
    ("gelu_pytorch_tanh", True): ("plain", ("act.gelu_tanh_mul",)),
    ("gelu", False): ("plain", ("act.gelu",)),
    ("gelu_new", False): ("plain", ("act.gelu_tanh",)),
    ("gelu_pytorch_tanh", False): ("plain", ("act.gelu_tanh",)),
    ("gelu_fast", False): ("plain", ("act.gelu_tanh",)),
    ("gelu_python", False): ("plain", ("act.gelu",)),
    ("relu", False): ("plain", ("act.relu",)),
}


class Mlp:
    """``down(act(up(x)))``; gated, up computes gate and up side by side in one product."""

    def __init__(self, build: Build, names: tuple[tuple[str, ...], str], spec: MlpSpec, hidden_size: int) -> None:
        """``names``: of up and of down."""
        up, down = names
        size, transposed = spec.intermediate_size, build.names.transposed
        parts = (size, size) if spec.gated else (size,)
        form, following = _ops(spec)
        self._acts: list[Callable[[Tensor], Tensor]] = [build.kernels[op] for op in following]
        self.up = Linear(build, up, hidden_size, parts, spec.bias, transposed, form)
        self.down = Linear(build, (down,), size, (hidden_size,), spec.bias, transposed)

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, H] -> [T, H]``, a new tensor."""
        x = self.up(x)
        for act in self._acts:
            x = act(x)
        return self.down(x)


def _ops(spec: MlpSpec) -> tuple[Form, tuple[str, ...]]:
    ops = _OPS.get((spec.activation, spec.gated))
    if ops is None:
        known = ", ".join(activation for activation, gated in _OPS if gated == spec.gated)
        kind = "a gated" if spec.gated else "a plain"
        raise ModelError(
            f"hidden_act {spec.activation!r} is not supported for {kind} feed-forward; supported: {known}."
        )
    return ops
