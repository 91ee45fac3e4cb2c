"""Writing keys and values into pages ``[num_pages, Hkv, page_size, D]``."""

from __future__ import annotations

from torch import Tensor

from sgl.kernels.registry import op


@op("kv.store")
def store(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_ids: Tensor, offsets: Tensor) -> None:
    """Writes k and v ``[T, Hkv, D]`` (any strides): token t to page ``page_ids[t]`` at ``offsets[t]``, both int64.

    No two tokens of one call have the same place.
    """
    k_pages.transpose(1, 2).index_put_((page_ids, offsets), k)
    v_pages.transpose(1, 2).index_put_((page_ids, offsets), v)
