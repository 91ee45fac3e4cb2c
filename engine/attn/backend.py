"""The contract between a model's attention layers and whatever computes attention over the paged cache."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer

Meta = TypeVar("Meta")


class AttentionBackend(Protocol[Meta]):
    """Stores and attends. Within a layer `store` runs for all rows before `run`: one row may read a page that another
    row of the same step writes.

    Attributes:
        native_pages: whether pages are in the order of kernels/cpu, so that layers joined to one native call read them.
    """

    native_pages: bool

    def plan(self, batch: ForwardBatch) -> Meta:
        """What all layers of a step share (indices, masks), computed once per step."""
        ...

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        """Writes this step's k and v ``[T, Hkv, D]`` to their places in the layer's pages."""
        ...

    def run(
        self,
        q: Tensor,
        kv: KVLayer,
        meta: Meta,
        scale: float,
        window: int | None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of q ``[T, H, D]`` over each row's cached tokens; returns a new ``[T, H, D]``.

        A query at position p sees the positions ``max(0, p - window + 1) .. p``; window None means all up to p.
        With a softcap a score becomes ``softcap * tanh(score / softcap)``. Sinks, float32 ``[H]``, are the scores of
        one more key per head, which every query sees and which has no value.
        """
        ...
