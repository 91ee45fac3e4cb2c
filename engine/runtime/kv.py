"""Allocates the paged KV cache of every layer; which page belongs to whom is the scheduler's business."""

from __future__ import annotations

from collections.abc import Sequence

from sgl.engine.attn.batch import KVLayer, KVSpec
from sgl.engine.base.device import Device


def kv_bytes_per_page(specs: Sequence[KVSpec], page_size: int) -> int:
    """Bytes that a page of ``page_size`` tokens takes in all layers together, whatever is kept of a token."""
    return page_size * sum(spec.bytes_per_token for spec in specs)


def allocate_kv(specs: Sequence[KVSpec], num_pages: int, page_size: int, device: Device) -> tuple[KVLayer, ...]:
    """The pages of every layer, zeroed, since a NaN in a place that nobody wrote would get past a mask.

    All layers share one page table: a plan hands out pages of one KV group only.
    """
    return tuple(KVLayer.make(spec, num_pages, page_size, device.zeros) for spec in specs)
