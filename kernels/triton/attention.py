"""Attention over the paged KV cache on GPUs: prefill by tiles of queries, decode by splits of the keys and their merge.

The query heads that share a KV head are rows of one tile, so keys are read once for all of them. The softmax is online
(Milakov and Gimelshein 2018; Dao et al. 2022) over blocks of keys that begin at multiples of the block; the splits of a
row follow from its length alone. So what a row is batched with changes no bit of its answer.

A tile is ``(row, its first token in the row, the number of that token among all that are computed by splits)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.triton.device import INTERPRETED, Block, Pointer, Scalar

# Scores are in units of log 2. A masked one is finite, so that its difference to another is not NaN, and so far below
# the least maximum that the difference of the two is still an exponent of zero.
LOG2E = tl.constexpr(1.4426950408889634)
MASKED_SCORE = tl.constexpr(-1e30)
LEAST_SCORE = tl.constexpr(-1e20)
FIRST_SPLIT = tl.constexpr(256)  # tokens of a split; doubled until a row has few enough of them

_PROGRAMS = 128  # that one decoding row should give: about the multiprocessors of a GPU
_MIN_ROWS = 16  # of a tile: what tensor cores take


@triton.jit
def _attend(
    q: Block,  # [M, D], in the dtype of the products
    acc: Block,  # float32 [M, D]
    top: Block,  # float32 [M], the greatest score so far
    total: Block,  # float32 [M], the sum of weights so far
    position: Block,  # [M]
    k: Pointer,
    v: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    table: Pointer,  # of the row's pages
    head: Scalar,
    first: Scalar,  # key of the block
    stop: Scalar,  # where the keys end that may be read
    scale: Scalar,
    cap: Scalar,
    window: Scalar,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[Block, Block, Block]:
    """Brings the running softmax of M query rows forward by one block of keys: acc, top, total."""
    key = first + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, BLOCK_D)
    there = key < stop
    page = tl.load(table + key // PAGE, there, 0).to(tl.int64)
    place = (page * KV_HEADS + head) * PAGE + key % PAGE
    element = place[:, None] * DIM + dim[None, :]
    readable = there[:, None] & (dim < DIM)[None, :]
    keys = tl.load(k + element, readable, 0.0).to(q.dtype)
    score = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    if SCALED:
        score *= tl.load(k_scale + place, there, 0.0)[None, :]
    if CAPPED:
        score = cap * LOG2E * (1.0 - 2.0 / (1.0 + tl.exp2(score * (2.0 * LOG2E / cap))))
    else:
        score *= LOG2E
    if MASKED:
        seen = key[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (key[None, :] > position[:, None] - window)
        score = tl.where(seen, score, MASKED_SCORE)
    peak = tl.maximum(top, tl.max(score, 1))
    decay = tl.exp2(top - peak)
    weight = tl.exp2(score - peak[:, None])
    total = total * decay + tl.sum(weight, 1)
    if SCALED:
        weight *= tl.load(v_scale + place, there, 0.0)[None, :]
    values = tl.load(v + element, readable, 0.0).to(q.dtype)
    acc = tl.dot(weight.to(q.dtype), values, acc * decay[:, None], input_precision="ieee")
    return acc, peak, total


@triton.jit
def _queries(
    q: Pointer,
    start: Scalar,
    token: Block,
    head: Block,
    valid: Block,
    token_stride: Scalar,
    head_stride: Scalar,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> Block:
    """The query rows of a tile ``[M, D]`` in the dtype of the products (the interpreter has no bfloat16)."""
    dim = tl.arange(0, BLOCK_D)
    place = (start + token).to(tl.int64) * token_stride + head * head_stride
    rows = tl.load(q + place[:, None] + dim[None, :], valid[:, None] & (dim < DIM)[None, :], 0.0)
    if INTERPRETED and rows.dtype == tl.bfloat16:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def _prefill_kernel(
    q: Pointer,
    k: Pointer,
    v: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    sinks: Pointer,
    out: Pointer,
    tiles: Pointer,
    cu_q: Pointer,
    seq_lens: Pointer,
    tables: Pointer,
    token_stride: Scalar,
    head_stride: Scalar,
    table_stride: Scalar,
    scale: Scalar,
    cap: Scalar,
    window: Scalar,
    SINKS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One tile of queries of one KV head, over all keys that it sees."""
    kv_head = tl.program_id(1)
    row, first = tl.load(tiles + tl.program_id(0) * 3), tl.load(tiles + tl.program_id(0) * 3 + 1)
    start = tl.load(cu_q + row)
    num_tokens = tl.load(cu_q + row + 1) - start
    past = tl.load(seq_lens + row) - num_tokens
    last = tl.minimum(first + BLOCK_M // GROUP, num_tokens) - 1
    member = tl.arange(0, BLOCK_M)
    valid = first + member // GROUP <= last
    token = tl.minimum(first + member // GROUP, last)
    head = kv_head * GROUP + member % GROUP
    queries = _queries(q, start, token, head, valid, token_stride, head_stride, DIM, BLOCK_D)
    position = past + token
    stop = past + last + 1

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if SINKS:
        top = tl.maximum(tl.load(sinks + head) * LOG2E, LEAST_SCORE)
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_M], LEAST_SCORE, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    if WINDOWED:
        begin = tl.maximum(past + first - window + 1, 0) // BLOCK_N * BLOCK_N
    else:
        begin = (past + first + 1) // BLOCK_N * BLOCK_N
        for at in range(0, begin, BLOCK_N):  # all of these blocks is seen by all queries
            acc, top, total = _attend(
                queries,
                acc,
                top,
                total,
                position,
                k,
                v,
                k_scale,
                v_scale,
                table,
                kv_head,
                at,
                stop,
                scale,
                cap,
                window,
                False,
                False,
                CAPPED,
                SCALED,
                KV_HEADS,
                PAGE,
                DIM,
                BLOCK_D,
                BLOCK_N,
            )
    for at in range(begin, stop, BLOCK_N):
        acc, top, total = _attend(
            queries,
            acc,
            top,
            total,
            position,
            k,
            v,
            k_scale,
            v_scale,
            table,
            kv_head,
            at,
            stop,
            scale,
            cap,
            window,
            True,
            WINDOWED,
            CAPPED,
            SCALED,
            KV_HEADS,
            PAGE,
            DIM,
            BLOCK_D,
            BLOCK_N,
        )
    answer = acc / total[:, None]
    dim = tl.arange(0, BLOCK_D)
    place = ((start + token).to(tl.int64) * (KV_HEADS * GROUP) + head) * DIM
    written = valid[:, None] & (dim < DIM)[None, :]
    tl.store(out + place[:, None] + dim[None, :], answer.to(out.dtype.element_ty), written)


@triton.jit
def _split_size(seq_len: Scalar, SPLITS: tl.constexpr) -> Scalar:
    size = seq_len * 0 + FIRST_SPLIT
    while size * SPLITS < seq_len:
        size *= 2
    return size


@triton.jit
def _split_kernel(
    q: Pointer,
    k: Pointer,
    v: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    parts: Pointer,  # float32 [N, H, SPLITS, D]
    sums: Pointer,  # float32 [N, H, SPLITS, 2], the greatest score and the sum of weights
    tiles: Pointer,
    cu_q: Pointer,
    seq_lens: Pointer,
    tables: Pointer,
    token_stride: Scalar,
    head_stride: Scalar,
    table_stride: Scalar,
    scale: Scalar,
    cap: Scalar,
    window: Scalar,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One tile of queries of one KV head, over the keys of one split."""
    kv_head, split = tl.program_id(1), tl.program_id(2)
    tile = tiles + tl.program_id(0) * 3
    row, first, number = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    start = tl.load(cu_q + row)
    num_tokens = tl.load(cu_q + row + 1) - start
    seq_len = tl.load(seq_lens + row)
    past = seq_len - num_tokens
    last = tl.minimum(first + BLOCK_M // GROUP, num_tokens) - 1
    size = _split_size(seq_len, SPLITS)
    begin = split * size
    stop = tl.minimum(begin + size, past + last + 1)
    if WINDOWED:
        begin = tl.maximum(begin, tl.maximum(past + first - window + 1, 0) // BLOCK_N * BLOCK_N)
    if begin >= stop:
        return
    member = tl.arange(0, BLOCK_M)
    valid = first + member // GROUP <= last
    token = tl.minimum(first + member // GROUP, last)
    head = kv_head * GROUP + member % GROUP
    queries = _queries(q, start, token, head, valid, token_stride, head_stride, DIM, BLOCK_D)
    position = past + token

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], LEAST_SCORE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    for at in range(begin, stop, BLOCK_N):
        acc, top, total = _attend(
            queries,
            acc,
            top,
            total,
            position,
            k,
            v,
            k_scale,
            v_scale,
            table,
            kv_head,
            at,
            stop,
            scale,
            cap,
            window,
            True,
            WINDOWED,
            CAPPED,
            SCALED,
            KV_HEADS,
            PAGE,
            DIM,
            BLOCK_D,
            BLOCK_N,
        )
    dim = tl.arange(0, BLOCK_D)
    place = ((number + token - first).to(tl.int64) * (KV_HEADS * GROUP) + head) * SPLITS + split
    tl.store(parts + place[:, None] * DIM + dim[None, :], acc, valid[:, None] & (dim < DIM)[None, :])
    tl.store(sums + place * 2, top, valid)
    tl.store(sums + place * 2 + 1, total, valid)


@triton.jit
def _merge_kernel(
    parts: Pointer,
    sums: Pointer,
    sinks: Pointer,
    out: Pointer,
    tiles: Pointer,
    cu_q: Pointer,
    seq_lens: Pointer,
    window: Scalar,
    SINKS: tl.constexpr,
    WINDOWED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,  # of a tile
    BLOCK_D: tl.constexpr,
) -> None:
    """The splits of one head of a tile's tokens, one token after the other."""
    head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * 3
    row, first, number = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    start = tl.load(cu_q + row)
    num_tokens = tl.load(cu_q + row + 1) - start
    seq_len = tl.load(seq_lens + row)
    size = _split_size(seq_len, SPLITS)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    for token in range(first, tl.minimum(first + TOKENS, num_tokens)):
        position = seq_len - num_tokens + token
        there = split <= position // size
        if WINDOWED:
            there = there & (split >= tl.maximum(position - window + 1, 0) // size)
        place = ((number + token - first).to(tl.int64) * HEADS + head) * SPLITS + split
        tops = tl.load(sums + place * 2, there, LEAST_SCORE)
        totals = tl.load(sums + place * 2 + 1, there, 0.0)
        peak = tl.max(tops, 0)
        if SINKS:
            peak = tl.maximum(peak, tl.load(sinks + head) * LOG2E)
        weight = tl.exp2(tops - peak)
        total = tl.sum(weight * totals, 0)
        if SINKS:
            total += tl.exp2(tl.load(sinks + head) * LOG2E - peak)
        part = tl.load(parts + place[:, None] * DIM + dim[None, :], there[:, None] & (dim < DIM)[None, :], 0.0)
        answer = tl.sum(part * weight[:, None], 0) / total
        where = ((start + token).to(tl.int64) * HEADS + head) * DIM + dim
        tl.store(out + where, answer.to(out.dtype.element_ty), dim < DIM)


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer's cache and how this step finds its way in it."""

    k: Tensor  # [num_pages, Hkv, page_size, D]
    v: Tensor
    k_scale: Tensor | None  # float32 [num_pages, Hkv, page_size], if k and v are quantised
    v_scale: Tensor | None
    cu_q: Tensor  # int32 [B + 1]
    seq_lens: Tensor  # int32 [B]
    table: Tensor  # int32 [B, W]


@dataclass(frozen=True, slots=True)
class Rules:
    """How scores become weights; see `AttentionBackend.run`."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # float32 [H]


def prefill_tokens(group: int, head_dim: int, dtype: torch.dtype) -> int:
    """Tokens of a prefill tile."""
    return _prefill_rows(group, head_dim, dtype) // group


def split_tokens(group: int) -> int:
    """Tokens of a tile that is computed by splits."""
    return _split_rows(group) // group


def prefill(q: Tensor, pages: Pages, rules: Rules, tiles: Tensor, out: Tensor) -> None:
    """Attends the tokens of ``tiles``, int32 [N, 3], of q ``[T, H, D]`` and writes them to out, contiguous."""
    group, dim = q.shape[1] // pages.k.shape[1], q.shape[2]
    rows = _prefill_rows(group, dim, q.dtype)
    _prefill_kernel[(len(tiles), pages.k.shape[1])](
        *(q, *_cache(q, pages), q if rules.sinks is None else rules.sinks, out),
        *(tiles, *_lengths(q, pages), *_numbers(rules)),
        SINKS=rules.sinks is not None,
        **_variant(q, pages, rules),
        BLOCK_M=rows,
        BLOCK_N=_keys(dim, q.dtype),
        num_warps=8 if rows >= 128 else 4,
        num_stages=2,
    )


def decode(q: Tensor, pages: Pages, rules: Rules, tiles: Tensor, num_tokens: int, out: Tensor) -> None:
    """As `prefill`, for rows of few tokens, ``num_tokens`` altogether: the keys are split among programs."""
    kv_heads, (_, heads, dim) = pages.k.shape[1], q.shape
    splits = _num_splits(kv_heads)
    parts = torch.empty(num_tokens, heads, splits, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(num_tokens, heads, splits, 2, dtype=torch.float32, device=q.device)
    rows = _split_rows(heads // kv_heads)
    longest = pages.table.shape[1] * pages.k.shape[2]
    _split_kernel[(len(tiles), kv_heads, min(splits, triton.cdiv(longest, FIRST_SPLIT.value)))](
        *(q, *_cache(q, pages), parts, sums, tiles, *_lengths(q, pages), *_numbers(rules)),
        **_variant(q, pages, rules),
        SPLITS=splits,
        BLOCK_M=rows,
        BLOCK_N=_keys(dim, q.dtype),
        num_warps=4,
        num_stages=3,
    )
    _merge_kernel[(len(tiles), heads)](
        *(parts, sums, q if rules.sinks is None else rules.sinks, out),
        *(tiles, pages.cu_q, pages.seq_lens, rules.window or 0),
        SINKS=rules.sinks is not None,
        WINDOWED=rules.window is not None,
        HEADS=heads,
        DIM=dim,
        SPLITS=splits,
        TOKENS=rows // (heads // kv_heads),
        BLOCK_D=_padded(dim),
        num_warps=4,
    )


def _cache(q: Tensor, pages: Pages) -> tuple[Tensor, ...]:
    """Keys, values and their scales; in place of scales that there are none of stands what is never read."""
    return (pages.k, pages.v, *(q if scale is None else scale for scale in (pages.k_scale, pages.v_scale)))


def _lengths(q: Tensor, pages: Pages) -> tuple[Any, ...]:
    return pages.cu_q, pages.seq_lens, pages.table, q.stride(0), q.stride(1), pages.table.stride(0)


def _numbers(rules: Rules) -> tuple[float, float, int]:
    return rules.scale, rules.softcap or 1.0, rules.window or 0


def _variant(q: Tensor, pages: Pages, rules: Rules) -> dict[str, Any]:
    _, kv_heads, page_size, dim = pages.k.shape
    return {
        "WINDOWED": rules.window is not None,
        "CAPPED": rules.softcap is not None,
        "SCALED": pages.k_scale is not None,
        "GROUP": q.shape[1] // kv_heads,
        "KV_HEADS": kv_heads,
        "PAGE": page_size,
        "DIM": dim,
        "BLOCK_D": _padded(dim),
    }


def _padded(dim: int) -> int:
    return max(16, _power_of_2(dim))


def _is_wide(dim: int, dtype: torch.dtype) -> bool:
    """Whether a row of a tile takes so much memory that tiles must be small."""
    return _padded(dim) * dtype.itemsize > 256


def _prefill_rows(group: int, dim: int, dtype: torch.dtype) -> int:
    return max(64 if _is_wide(dim, dtype) else 128, _power_of_2(group))


def _split_rows(group: int) -> int:
    return max(_MIN_ROWS, _power_of_2(group))


def _keys(dim: int, dtype: torch.dtype) -> int:
    return 32 if _is_wide(dim, dtype) else 64


def _num_splits(kv_heads: int) -> int:
    """The most splits of a row: as many as give one row of one token enough programs."""
    return min(max(_power_of_2(_PROGRAMS // kv_heads), 4), 64)


def _power_of_2(x: int) -> int:
    """The first that is not less."""
    return int(triton.next_power_of_2(x))
