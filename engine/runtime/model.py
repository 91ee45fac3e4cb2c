"""What the runtime asks of a model; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.runtime.pooling import Head


class Model(Protocol):
    """Layers, and what follows them."""

    @property
    def kv_specs(self) -> Sequence[KVSpec]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def pooling(self) -> Head | None:
        """What follows the hidden states in place of logits."""

    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        """Stores the batch's KV and returns the last hidden states [T, hidden]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """A fresh float32 [L, V] for hidden states [L, hidden]."""


@dataclass(frozen=True)
class NoModel:
    """Where a model was and will be again."""

    kv_specs: Sequence[KVSpec]
    vocab_size: int
    pooling: Head | None = None

    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        raise AssertionError("the memory is released")

    def logits(self, hidden: Tensor) -> Tensor:
        raise AssertionError("the memory is released")
