"""Rows of a table by index."""

from __future__ import annotations

from torch import Tensor

from sgl.kernels.registry import op


@op("embedding")
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """A new ``[T, H]`` from ids int64 ``[T]``, each in ``0 .. V-1``, and table ``[V, H]``."""
    return table.index_select(0, ids)
