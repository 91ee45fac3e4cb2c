"""A mixture of experts in the place of a feed-forward; who computes is chosen anew for every token."""

from __future__ import annotations

from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.mlp import Mlp
from sgl.engine.nn.spec import MlpSpec, MoeSpec
from sgl.engine.nn.weights import Build, WeightSlot
from sgl.kernels.ops.linear import LinearFn
from sgl.kernels.ops.moe import ExpertsFn, Route


class Gate:
    """A small linear layer whose answers are scores ``[T, N]`` in float32; no format rounds its weight."""

    def __init__(self, build: Build, name: str, hidden_size: int, size: int) -> None:
        self.slots = [WeightSlot(f"{name}.weight", (size, hidden_size), build.parameter(size, hidden_size))]
        self.nbytes = 0
        self._build = build
        self._run: LinearFn
        build.leaves.append(self)

    def finalize(self) -> None:
        weight = self.slots[0].destination.take()
        self._run = self._build.kernels["linear"](weight, None, "float32", self._build.allocate)
        self.nbytes = self._run.packed_bytes or weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x)


class Moe:
    """``sum of score * expert(x)`` over the chosen experts, and the shared one's answer."""

    def __init__(self, build: Build, layer: int, spec: MoeSpec, hidden_size: int) -> None:
        names = build.names
        _check(spec.expert)
        self._spec = spec
        self._kernels = build.kernels
        self._route: Route = build.kernels["moe.route"]
        self._router = Gate(build, names.router.format(layer), hidden_size, spec.num_experts)
        self.experts = [
            Mlp(
                build,
                (
                    tuple(name.format(layer, expert) for name in names.expert_up),
                    names.expert_down.format(layer, expert),
                ),
                spec.expert,
                hidden_size,
            )
            for expert in range(spec.num_experts)
        ]
        self._shared: Mlp | None = None
        self._shared_gate: Gate | None = None
        if spec.shared is not None:
            up = tuple(name.format(layer) for name in names.shared_up)
            self._shared = Mlp(build, (up, names.shared_down.format(layer)), spec.shared, hidden_size)
            if spec.shared_gate:
                self._shared_gate = Gate(build, names.shared_gate.format(layer), hidden_size, 1)
        self._run: ExpertsFn

    def finish(self) -> None:
        """Called once, when all weights are there: joins the experts."""
        ups, downs = [expert.up.state for expert in self.experts], [expert.down.state for expert in self.experts]
        self._run = self._kernels["moe.experts"](ups, downs)

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, H] -> [T, H]``, a new tensor."""
        spec = self._spec
        out = self._run(x, *self._route(self._router(x), spec.top_k, "softmax", spec.renormalize))
        if self._shared is None:
            return out
        shared = self._shared(x)
        if self._shared_gate is not None:
            shared = shared.mul_(self._shared_gate(x).sigmoid())
        return out.add_(shared)


def _check(expert: MlpSpec) -> None:
    if expert.activation != "silu" or not expert.gated or expert.bias:
        raise ModelError(f"Experts with hidden_act {expert.activation!r} are not supported; silu is.")
