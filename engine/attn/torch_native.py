"""Attention over the paged cache in plain torch: runs anywhere, and is the oracle of all others.

Every row is computed from its own pages with shapes that depend on that row alone (lengths are rounded up to a bucket,
not to the longest row of the batch), so what a row is batched with does not change its arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sgl.engine.attn.backend import GraphBackend, Traits
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.base.device import Device
from sgl.kernels.ops.attention import Rules
from sgl.kernels.registry import Kernels

_NEG_INF = float("-inf")
_MIN_BUCKET = 64  # tokens


@dataclass(frozen=True, slots=True)
class Places:
    """Where a step's tokens go in a KV group's pages."""

    page_ids: Tensor  # int64 [T]
    offsets: Tensor  # int64 [T]
    unfinished: Tensor  # int64, pages that this step starts and does not fill


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of one token whose cached lengths fall into one bucket of S tokens."""

    tokens: Tensor | None  # int64 [b] into T; None if these are all tokens, in order
    blocks: Tensor  # int64 [b * Hkv * S / page_size] into the (page, head) blocks of the cache
    mask: Tensor  # [b, 1, 1, S], 0 or -inf


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """A row of several tokens, of which S cached tokens are visible to at least one."""

    start: int
    stop: int
    blocks: Tensor  # int64 [Hkv * num_pages]
    num_keys: int  # S
    mask: Tensor | None  # [stop - start, S], 0 or -inf; None if plainly causal from the first token


@dataclass(frozen=True, slots=True)
class Work:
    decode: tuple[DecodeRows, ...]
    prefill: tuple[PrefillRow, ...]


class Meta:
    """A step's indices and masks, made when the first layer of a kind asks for them."""

    def __init__(self, batch: ForwardBatch, device: Device) -> None:
        known = batch.seq_lens if batch.host is None else batch.host.seq_lens
        self._batch = batch
        self._device = device
        self._seq_lens: list[int] = known.tolist()
        self._places: dict[int, Places] = {}
        self._work: dict[tuple[int, int, int | None, torch.dtype], Work] = {}

    def places(self, kv: KVLayer) -> Places:
        if kv.group not in self._places:
            self._places[kv.group] = self._find_places(kv)
        return self._places[kv.group]

    def work(self, kv: KVLayer, window: int | None, dtype: torch.dtype) -> Work:
        key = (kv.group, kv.k.shape[1], window, dtype)
        if key not in self._work:
            self._work[key] = self._find_work(kv, window, dtype)
        return self._work[key]

    def _upload(self, rows: list[list[int]]) -> Tensor:
        """int64 [N, 2 or 3] on the device."""
        return self._device.upload([np.array(rows, np.int64)])[0]

    def _find_places(self, kv: KVLayer) -> Places:
        out_loc, size = self._batch.out_loc[kv.group], kv.page_size
        unfinished = [
            [row, seq_len // size]
            for row, (q_len, seq_len) in enumerate(zip(self._batch.q_lens, self._seq_lens, strict=True))
            if 0 < seq_len % size <= q_len
        ]
        pages = torch.empty(0, dtype=torch.int64, device=out_loc.device)
        if unfinished:
            row, column = self._upload(unfinished).unbind(1)
            pages = self._batch.page_table[kv.group][row, column].long()
        return Places(out_loc // size, out_loc % size, pages)

    def _find_work(self, kv: KVLayer, window: int | None, dtype: torch.dtype) -> Work:
        buckets: dict[int, list[list[int]]] = defaultdict(list)  # S -> (row, token, first page)
        prefill = []
        start = 0
        for row, (q_len, seq_len) in enumerate(zip(self._batch.q_lens, self._seq_lens, strict=True)):
            first = _first_visible(seq_len - q_len, window) // kv.page_size
            if q_len == 1:
                num_keys = _bucket(seq_len - first * kv.page_size, kv.page_size)
                buckets[num_keys].append([row, start, first])
            elif q_len:
                prefill.append(self._prefill_row(kv, row, start, first, window, dtype))
            start += q_len
        decode = [self._decode_rows(kv, num_keys, rows, window, dtype) for num_keys, rows in buckets.items()]
        return Work(tuple(decode), tuple(prefill))

    def _decode_rows(
        self, kv: KVLayer, num_keys: int, rows: list[list[int]], window: int | None, dtype: torch.dtype
    ) -> DecodeRows:
        device = kv.k.device
        row, token, first = self._upload(rows).unbind(1)
        seq_len = self._batch.seq_lens[row][:, None]  # [b, 1]
        columns = first[:, None] + torch.arange(num_keys // kv.page_size, device=device)
        # What fills up the bucket is the row's own last page again: masked, and no other request's numbers.
        columns = columns.minimum((seq_len - 1) // kv.page_size)
        pages = self._batch.page_table[kv.group][row[:, None], columns]  # [b, n]
        keys = first[:, None] * kv.page_size + torch.arange(num_keys, device=device)
        hidden = keys >= seq_len
        if window is not None:
            hidden |= keys < seq_len - window
        mask = torch.zeros(keys.shape, dtype=dtype, device=device).masked_fill_(hidden, _NEG_INF)
        everything = len(rows) == sum(self._batch.q_lens)
        return DecodeRows(None if everything else token, _blocks(pages, kv), mask[:, None, None])

    def _prefill_row(
        self, kv: KVLayer, row: int, start: int, first: int, window: int | None, dtype: torch.dtype
    ) -> PrefillRow:
        device = kv.k.device
        q_len, seq_len = self._batch.q_lens[row], self._seq_lens[row]
        last = (seq_len - 1) // kv.page_size
        pages = self._batch.page_table[kv.group][row : row + 1, first : last + 1]
        num_keys = seq_len - first * kv.page_size
        mask = None
        if q_len < seq_len or (window is not None and window < seq_len):
            query = torch.arange(seq_len - q_len, seq_len, device=device)[:, None]
            key = torch.arange(first * kv.page_size, seq_len, device=device)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, _NEG_INF)
        return PrefillRow(start, start + q_len, _blocks(pages, kv), num_keys, mask)


class TorchNativeBackend:
    """See `AttentionBackend`; runs on any device. Where the host does not know row lengths, `plan` waits for them."""

    def __init__(self, device: Device, kernels: Kernels) -> None:
        self._device = device
        self._store: Callable[..., None] = kernels["kv.store"]
        self.traits = Traits(plans_on_host=device.kind != "cpu")  # which has them at hand

    def plan(self, batch: ForwardBatch) -> Meta:
        return Meta(batch, self._device)

    def store(self, k: Tensor, v: Tensor, kv: KVLayer, meta: Meta) -> None:
        places = meta.places(kv)
        if places.unfinished.numel():
            # What a former owner left behind the row's last token is read under a mask, which a NaN would survive.
            for pages, scales in kv.parts:
                (pages if scales is None else scales).index_fill_(0, places.unfinished, 0)
        if kv.k_scale is None and not kv.is_latent:
            self._store(k, v, kv.k, kv.v, places.page_ids, places.offsets)
            return
        for x, (pages, scales) in zip((k, v), kv.parts, strict=False):  # values that are keys come with them
            if scales is not None:
                x, scale = rounded(x, pages.dtype)
                scales.transpose(1, 2).index_put_((places.page_ids, places.offsets), scale)
                x, pages = _as_bytes(x), _as_bytes(pages)
            pages.transpose(1, 2).index_put_((places.page_ids, places.offsets), x)

    def run(self, q: Tensor, kv: KVLayer, meta: Meta, rules: Rules) -> Tensor:
        work = meta.work(kv, rules.window, q.dtype)
        if not work.prefill and work.decode and work.decode[0].tokens is None:
            return _decode(q, kv, work.decode[0], rules)
        out = torch.empty(*q.shape[:2], kv.v.shape[3], dtype=q.dtype, device=q.device)
        for rows in work.decode:
            out[rows.tokens] = _decode(q[rows.tokens], kv, rows, rules)
        for row in work.prefill:
            out[row.start : row.stop] = _prefill(q[row.start : row.stop], kv, row, rules)
        return out

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[Meta] | None:
        return None  # shapes follow the rows' lengths


def rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x ``[T, Hkv, D]`` in int8 or an 8-bit float, and float32 scales ``[T, Hkv]`` that make its greatest number the
    dtype's own. A number that is not finite spoils its scale."""
    greatest = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
    x = x.float()
    scale = x.abs().amax(-1) / greatest
    value = (x / torch.where(scale > 0, scale, 1.0)[..., None]).clamp(-greatest, greatest)
    return (value.round() if dtype == torch.int8 else value).to(dtype), scale


def _decode(q: Tensor, kv: KVLayer, rows: DecodeRows, rules: Rules) -> Tensor:
    """q ``[b, H, D]``; the heads of a group take the place of the sequence, so that keys are read once per group."""
    num_rows, num_heads, head_dim = q.shape
    kv_heads, num_keys = kv.k.shape[1], rows.mask.shape[-1]
    shape = (num_rows, kv_heads, num_keys, head_dim)
    grouped = q.reshape(num_rows, kv_heads, num_heads // kv_heads, head_dim)
    mask = rows.mask.expand(-1, -1, grouped.shape[2], -1)
    k, v = (part.view(shape) for part in _gather(kv, rows.blocks, q.dtype))
    out = _attend(grouped, k, v, mask, rules, (kv_heads, -1, 1))
    return out.reshape(num_rows, num_heads, head_dim)[..., : kv.v.shape[3]]


def _prefill(q: Tensor, kv: KVLayer, row: PrefillRow, rules: Rules) -> Tensor:
    """q ``[n, H, D]`` of one row; the KV heads take the place of the batch, their group shares keys without a copy."""
    num_tokens, num_heads, head_dim = q.shape
    kv_heads = kv.k.shape[1]
    group = num_heads // kv_heads
    grouped = q.reshape(num_tokens, kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [Hkv, g, n, D]
    k, v = (
        part.view(kv_heads, 1, -1, head_dim)[:, :, : row.num_keys].expand(-1, group, -1, -1)
        for part in _gather(kv, row.blocks, q.dtype)
    )
    out = _attend(grouped, k, v, row.mask, rules, (kv_heads, group, 1, 1))
    return out.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)[..., : kv.v.shape[3]]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rules: Rules, heads: tuple[int, ...]) -> Tensor:
    """q ``[..., n, D]`` over k and v ``[..., S, D]``; without a mask causal; ``heads`` is the shape of the sinks."""
    if rules.softcap is None and rules.sinks is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=rules.scale)
    scores = (q @ k.transpose(-1, -2)).float() * rules.scale
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is None:
        mask = torch.full(scores.shape[-2:], _NEG_INF, device=q.device).triu(1)
    scores = scores + mask
    if rules.sinks is not None:
        sinks = rules.sinks.float().view(heads).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), -1)
    return scores.softmax(-1)[..., : k.shape[-2]].to(v.dtype) @ v


def _gather(kv: KVLayer, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Copies of (page, head) blocks of keys and of values ``[n, page_size, D]``.

    Values that are the beginnings of the keys are answered as whole keys: torch attends in one kernel where both are of
    one width, and what is too much of the result is cut off.
    """
    found = []
    for pages, scales in kv.parts:
        if scales is None:
            found.append(pages.flatten(0, 1).index_select(0, blocks))
        else:
            values = _as_bytes(pages).flatten(0, 1).index_select(0, blocks).view(pages.dtype)
            found.append((values.float() * scales.flatten(0, 1).index_select(0, blocks)[..., None]).to(dtype))
    return found[0], found[-1]


def _as_bytes(x: Tensor) -> Tensor:
    """8-bit numbers as what every operation takes that only moves them."""
    return x.view(torch.int8)


def _blocks(pages: Tensor, kv: KVLayer) -> Tensor:
    """The (page, head) blocks of pages ``[b, n]``, ordered by row, head, page."""
    num_heads = kv.k.shape[1]
    heads = torch.arange(num_heads, device=pages.device)[None, :, None]
    return (pages.long()[:, None, :] * num_heads + heads).flatten()


def _first_visible(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _bucket(num_keys: int, page_size: int) -> int:
    """Rounds up to a whole number of pages and to at most a quarter more."""
    granule = max(_MIN_BUCKET, page_size, 1 << max(0, num_keys.bit_length() - 3))
    granule += -granule % page_size
    return num_keys + -num_keys % granule
