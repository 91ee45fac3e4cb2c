"""A mixture of experts in the place of a feed-forward; who computes is chosen anew for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.mlp import Mlp
from sgl.engine.nn.spec import MlpSpec, MoeSpec
from sgl.engine.nn.weights import Build, Parameter, WeightSlot
from sgl.kernels.ops.linear import LinearFn
from sgl.kernels.ops.moe import ExpertsFn, Route
from sgl.kernels.ops.routing import Groups, RouteGroups


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


class Router:
    """The experts of every token ``[T, H]`` and their scores; see `RoutingSpec`."""

    def __init__(self, build: Build, layer: int, spec: MoeSpec, hidden_size: int) -> None:
        routing = self._spec = spec.routing
        self._top_k = spec.top_k
        self._gate = Gate(build, build.names.router.format(layer), hidden_size, spec.num_experts)
        self._correction: Correction | None = None
        if routing.corrected:
            self._correction = Correction(build, build.names.router_bias.format(layer), spec.num_experts)
        self._is_plain = not routing.corrected and routing.groups == 1 and routing.factor == 1.0
        self._route: Route = build.kernels["moe.route"]
        self._route_groups: RouteGroups = build.kernels["moe.route_groups"]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spec, logits = self._spec, self._gate(x)
        if self._is_plain:
            return self._route(logits, self._top_k, spec.scoring, spec.renormalize)
        bias = None if self._correction is None else self._correction.bias
        groups = Groups(spec.groups, spec.top_groups)
        return self._route_groups(logits, bias, self._top_k, groups, spec.scoring, spec.renormalize, spec.factor)


class Correction:
    """What is added to the scores of experts while they are chosen, float32 ``[E]``."""

    def __init__(self, build: Build, name: str, num_experts: int) -> None:
        self.slots = [WeightSlot(name, (num_experts,), Parameter((num_experts,), torch.float32, build.device))]
        self.nbytes = 0
        self.bias = torch.empty(0)
        build.leaves.append(self)

    def finalize(self) -> None:
        self.bias = self.slots[0].destination.take()
        self.nbytes = self.bias.nbytes


class Moe:
    """``sum of score * expert(x)`` over the chosen experts, and the shared one's answer."""

    def __init__(self, build: Build, layer: int, spec: MoeSpec, hidden_size: int) -> None:
        names = build.names
        _check(spec.expert)
        self._kernels = build.kernels
        self._router = Router(build, layer, spec, hidden_size)
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
        out = self._run(x, *self._router(x))
        if self._shared is None:
            return out
        shared = self._shared(x)
        if self._shared_gate is not None:
            shared = shared.mul_(self._shared_gate(x).sigmoid())
        return out.add_(shared)


def _check(expert: MlpSpec) -> None:
    if expert.activation != "silu" or not expert.gated or expert.bias:
        raise ModelError(f"Experts with hidden_act {expert.activation!r} are not supported; silu is.")
