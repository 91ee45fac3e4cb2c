"""The contract between a model's attention layers and whatever computes attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.kernels.ops.attention import Rules

Meta = TypeVar("Meta")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a backend asks of its surroundings."""

    native_pages: bool = False  # pages are in the order of kernels/cpu: layers joined to one native call read them
    plans_on_host: bool = False  # `AttentionBackend.plan` wants the batch's ``host``
    step_bytes: int = 0  # of device memory that it takes at once in a step, beside what it returns
    plan_bytes: int = 0  # of device memory that it keeps for steps without a graph
    graph_bytes: int = 0  # and for every captured graph


class AttentionBackend(Protocol[Meta]):
    """Stores and attends. Within a layer `store` runs for all rows before `run`: one row may read a page that another
    row of the same step writes. On a GPU no method waits for the device.

    Attributes:
        traits: what those must know who put it to use.
    """

    traits: Traits

    def plan(self, batch: ForwardBatch) -> Meta:
        """What all layers of a step share (indices, masks), computed once per step."""
        ...

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        """Writes this step's k and v ``[T, Hkv, D]`` to their places in the layer's pages; of a latent layer only k,
        of which v is a part."""
        ...

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        """Causal attention of q ``[T, H, D]`` over each row's cached tokens; returns a new ``[T, H, Dv]``, as wide as
        the layer's values."""
        ...

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        """The backend of a captured graph whose inputs are the tensors of ``batch``, which are refilled before every
        replay; all its rows have the same number of tokens. None: steps with this backend cannot be captured.

        Called outside the capture. One run of the model with the result must precede the capture.
        """
        ...


class GraphBackend(AttentionBackend[Meta], Protocol[Meta]):
    """What computes attention in one captured graph: its `plan` returns the same tensors every time."""

    def replan(self, batch: ForwardBatch) -> bool:
        """Prepares a replay for a step of no more rows than the graph's, on the stream that replays it.

        The graph's own tensors hold the step already, its rows first. False: this step must run without the graph.
        """
        ...


class Captured(Generic[Meta]):
    """A `GraphBackend` for backends that read all they need from the batch's tensors: nothing is left to replan."""

    def __init__(self, backend: AttentionBackend[Meta], meta: Meta) -> None:
        self.traits = backend.traits
        self._backend = backend
        self._meta = meta

    def plan(self, batch: ForwardBatch) -> Meta:
        return self._meta

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        self._backend.store(k, v, kv, meta)

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        return self._backend.run(q, kv, meta, rules)

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        raise AssertionError("a graph has its buffers")

    def replan(self, batch: ForwardBatch) -> bool:
        return True
