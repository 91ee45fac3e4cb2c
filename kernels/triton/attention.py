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

from sgl.kernels.ops.attention import Rules
from sgl.kernels.triton.attention_shared import FIRST_SPLIT, Sharing, split_size
from sgl.kernels.triton.device import INTERPRETED, Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound

# Scores are in units of log 2. A masked one is finite, so that its difference to another is not NaN, and so far below
# the least maximum that the difference of the two is still an exponent of zero.
LOG2E = tl.constexpr(1.4426950408889634)
MASKED_SCORE = tl.constexpr(-1e30)
LEAST_SCORE = tl.constexpr(-1e20)

MAX_HEAD_DIM = 256
"""Of keys with values of their own."""

_PROGRAMS = 128  # that one decoding row should give: about the multiprocessors of a GPU
_MIN_ROWS = 16  # of a tile: what tensor cores take
_ROOM = ((256, (128, 64)), (1024, (64, 32)))  # up to so many bytes of a value: query rows of a tile, keys of a block
_FLOAT_ROOM = (32, 16)  # tensor cores multiply no float32: threads hold their operands in registers
_LEAST_ROOM = (16, 16)
_TILES_TOGETHER = 4  # so many are a multiple of 16 bytes, to which kernels are compiled


@triton.jit
def _attend(
    q: Block,  # [M, V], in the dtype of the products
    more: Block,  # [M, R], the rest of the queries where values are the beginnings of keys
    acc: Block,  # float32 [M, V]
    top: Block,  # float32 [M], the greatest score so far
    total: Block,  # float32 [M], the sum of weights so far
    position: Block,  # [M]
    k: Pointer,
    v: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    table: Pointer,  # of the row's pages
    head: Scalar,
    begin: Scalar,  # first key, a multiple of BLOCK_N
    end: Scalar,
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
    VALUE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[Block, Block, Block]:
    """Brings the running softmax of M query rows forward, block of keys by block: acc, top, total."""
    dim = tl.arange(0, BLOCK_V)
    for first in range(begin, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        there = key < stop
        page = tl.load(table + key // PAGE, there, 0).to(tl.int64)
        place = (page * KV_HEADS + head) * PAGE + key % PAGE
        element = place[:, None] * DIM + dim[None, :]
        readable = there[:, None] & (dim < VALUE)[None, :]
        keys = tl.load(k + element, readable, 0.0).to(q.dtype)
        score = tl.dot(q, tl.trans(keys), input_precision="ieee")
        if BLOCK_R > 0:
            rest = VALUE + tl.arange(0, BLOCK_R)
            shared = tl.load(k + place[:, None] * DIM + rest[None, :], there[:, None] & (rest < DIM)[None, :], 0.0)
            score = tl.dot(more, tl.trans(shared.to(q.dtype)), score, input_precision="ieee")
        score *= scale
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
        top = peak
        total = total * decay + tl.sum(weight, 1)
        if SCALED:
            weight *= tl.load(v_scale + place, there, 0.0)[None, :]
        if BLOCK_R > 0:
            values = keys
        else:
            values = tl.load(v + element, readable, 0.0).to(q.dtype)
        acc = tl.dot(weight.to(q.dtype), values, acc * decay[:, None], input_precision="ieee")
    return acc, top, total


@triton.jit
def _tile(tile: Pointer, cu_q: Pointer, seq_lens: Pointer) -> tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]:
    """Its row, first token and number; where the row starts, how many tokens it has, and how many came before."""
    row, first, number = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    start = tl.load(cu_q + row)
    num_tokens = tl.load(cu_q + row + 1) - start
    return row, first, number, start, num_tokens, tl.load(seq_lens + row) - num_tokens


@triton.jit
def _members(
    first: Scalar, num_tokens: Scalar, group: Scalar, GROUP: tl.constexpr, BLOCK_M: tl.constexpr
) -> tuple[Block, Block, Block, Scalar]:
    """The rows of a tile: their tokens and heads, which of them there are, and the last token."""
    last = tl.minimum(first + BLOCK_M // GROUP, num_tokens) - 1
    member = tl.arange(0, BLOCK_M)
    valid = first + member // GROUP <= last
    return tl.minimum(first + member // GROUP, last), group * GROUP + member % GROUP, valid, last


@triton.jit
def _queries(
    q: Pointer,
    place: Block,  # [M], of the heads' queries
    valid: Block,
    FIRST: tl.constexpr,
    STOP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> Block:
    """Numbers FIRST to STOP of the query rows of a tile, in the dtype of the products (the interpreter has no
    bfloat16)."""
    dim = FIRST + tl.arange(0, BLOCK)
    rows = tl.load(q + place[:, None] + dim[None, :], valid[:, None] & (dim < STOP)[None, :], 0.0)
    if INTERPRETED and rows.dtype == tl.bfloat16:
        rows = rows.to(tl.float32)
    return rows


@bound
@triton.jit(do_not_specialize=["table_stride"])
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
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """One tile of queries of one group of heads, over all keys that it sees."""
    row, first, _number, start, num_tokens, past = _tile(tiles + tl.program_id(0) * 3, cu_q, seq_lens)
    token, head, valid, last = _members(first, num_tokens, tl.program_id(1), GROUP, BLOCK_M)
    where = (start + token).to(tl.int64) * token_stride + head * head_stride
    queries = _queries(q, where, valid, 0, VALUE, BLOCK_V)
    more = queries
    if BLOCK_R > 0:
        more = _queries(q, where, valid, VALUE, DIM, BLOCK_R)
    position = past + token
    stop = past + last + 1
    kv_head = tl.program_id(1) * GROUP // (HEADS // KV_HEADS)  # a tile may have a share of the heads of one only

    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
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
        begin = (past + first + 1) // BLOCK_N * BLOCK_N  # all before is seen by all queries
        acc, top, total = _attend(
            *(queries, more, acc, top, total, position, k, v, k_scale, v_scale, table, kv_head, 0, begin, stop),
            *(scale, cap, window, False, False, CAPPED, SCALED),
            *(KV_HEADS, PAGE, DIM, VALUE, BLOCK_V, BLOCK_R, BLOCK_N),
        )
    acc, top, total = _attend(
        *(queries, more, acc, top, total, position, k, v, k_scale, v_scale, table, kv_head, begin, stop, stop),
        *(scale, cap, window, True, WINDOWED, CAPPED, SCALED),
        *(KV_HEADS, PAGE, DIM, VALUE, BLOCK_V, BLOCK_R, BLOCK_N),
    )
    answer = acc / total[:, None]
    dim = tl.arange(0, BLOCK_V)
    place = ((start + token).to(tl.int64) * HEADS + head) * VALUE
    written = valid[:, None] & (dim < VALUE)[None, :]
    tl.store(out + place[:, None] + dim[None, :], answer.to(out.dtype.element_ty), written)


@triton.jit
def _together(
    row: Scalar,
    split: Scalar,
    shares: Pointer,
    order: Pointer,
    rows: Scalar,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tuple[Scalar, Scalar, Block, Block]:
    """Whether a row's tile computes a split with others, whether another tile does it for this one, and the rows that
    share the tile, of BLOCK_M // (TOKENS * GROUP) rows: which, and whether they take part."""
    ROWS: tl.constexpr = BLOCK_M // (TOKENS * GROUP)
    shared, place, rank = tl.load(shares + row * 4), tl.load(shares + row * 4 + 1), tl.load(shares + row * 4 + 2)
    together, member = split < shared, tl.arange(0, BLOCK_M) // (TOKENS * GROUP)
    mine = tl.load(order + place + member, (member < ROWS) & (place + member < rows), -1)
    takes_part = mine >= 0
    mine = tl.maximum(mine, 0)
    same_leader = tl.load(shares + mine * 4 + 3) == tl.load(shares + row * 4 + 3)
    takes_part = takes_part & same_leader & (tl.load(shares + mine * 4) > split)
    return together, together & (rank % ROWS > 0), mine, takes_part


@bound
@triton.jit(do_not_specialize=["table_stride", "rows"])
def _split_kernel(
    q: Pointer,
    k: Pointer,
    v: Pointer,
    k_scale: Pointer,
    v_scale: Pointer,
    parts: Pointer,  # float32 [N, H, SPLITS, V], from the first tile's first token on
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
    shares: Pointer,
    order: Pointer,
    numbers: Pointer,
    rows: Scalar,
    SHARED: tl.constexpr,  # tokens of the rows that may share a tile, 0: none do
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SCALED: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    VALUE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """One tile of queries of one group of heads, over the keys of one split. Those that share the split with other rows
    are computed in one tile with them; a row's numbers are the same there."""
    split = tl.program_id(2)
    row, first, number, start, num_tokens, past = _tile(tiles + tl.program_id(0) * 3, cu_q, seq_lens)
    token, head, valid, last = _members(first, num_tokens, tl.program_id(1), GROUP, BLOCK_M)
    size = split_size(past + num_tokens, SPLITS)
    begin = split * size
    stop = tl.minimum(begin + size, past + last + 1)
    if WINDOWED:
        begin = tl.maximum(begin, tl.maximum(past + first - window + 1, 0) // BLOCK_N * BLOCK_N)
    if begin >= stop:
        return
    position, token = past + token, token + start
    place = token - start - first + number - tl.load(tiles + 2)
    if SHARED > 0:
        together, is_done, mine, takes_part = _together(row, split, shares, order, rows, SHARED, GROUP, BLOCK_M)
        if is_done:
            return
        if together:
            its_start, its_token = tl.load(cu_q + mine), tl.arange(0, BLOCK_M) % (SHARED * GROUP) // GROUP
            count = tl.load(cu_q + mine + 1) - its_start
            valid = takes_part & (its_token < count)
            its_token = tl.minimum(its_token, count - 1)
            position, token = tl.load(seq_lens + mine) - count + its_token, its_start + its_token
            place = tl.load(numbers + mine) + its_token - tl.load(tiles + 2)
    where = token.to(tl.int64) * token_stride + head * head_stride
    queries = _queries(q, where, valid, 0, VALUE, BLOCK_V)
    more = queries
    if BLOCK_R > 0:
        more = _queries(q, where, valid, VALUE, DIM, BLOCK_R)

    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    top = tl.full([BLOCK_M], LEAST_SCORE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    kv_head = tl.program_id(1) * GROUP // (HEADS // KV_HEADS)
    acc, top, total = _attend(
        *(queries, more, acc, top, total, position, k, v, k_scale, v_scale, table, kv_head, begin, stop, stop),
        *(scale, cap, window, True, WINDOWED, CAPPED, SCALED),
        *(KV_HEADS, PAGE, DIM, VALUE, BLOCK_V, BLOCK_R, BLOCK_N),
    )
    dim = tl.arange(0, BLOCK_V)
    place = (place.to(tl.int64) * HEADS + head) * SPLITS + split
    tl.store(parts + place[:, None] * VALUE + dim[None, :], acc, valid[:, None] & (dim < VALUE)[None, :])
    tl.store(sums + place * 2, top, valid)
    tl.store(sums + place * 2 + 1, total, valid)


@bound
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
    VALUE: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,  # of a tile
    BLOCK_V: tl.constexpr,
) -> None:
    """The splits of one head of a tile's tokens, one token after the other."""
    head = tl.program_id(1)
    _row, first, number, start, num_tokens, past = _tile(tiles + tl.program_id(0) * 3, cu_q, seq_lens)
    number -= tl.load(tiles + 2)
    size = split_size(past + num_tokens, SPLITS)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, BLOCK_V)
    for token in range(first, tl.minimum(first + TOKENS, num_tokens)):
        position = past + token
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
        part = tl.load(parts + place[:, None] * VALUE + dim[None, :], there[:, None] & (dim < VALUE)[None, :], 0.0)
        answer = tl.sum(part * weight[:, None], 0) / total
        where = ((start + token).to(tl.int64) * HEADS + head) * VALUE + dim
        tl.store(out + where, answer.to(out.dtype.element_ty), dim < VALUE)


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
class Shape:
    """Of queries and of what they meet, and how tiles are cut for it."""

    heads: int
    kv_heads: int
    dim: int  # of a key
    value_dim: int  # of a value; if it is less, values are the beginnings of keys
    dtype: torch.dtype

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> Shape:
        return cls(q.shape[1], k.shape[1], q.shape[2], v.shape[3], q.dtype)

    @property
    def is_latent(self) -> bool:
        return self.value_dim < self.dim

    @property
    def room(self) -> tuple[int, int]:
        """Query rows of a tile and keys of a block, fewer the more memory each takes."""
        width = _padded(self.value_dim) * self.dtype.itemsize
        room = next((sizes for most, sizes in _ROOM if width <= most), _LEAST_ROOM)
        return min(room, _FLOAT_ROOM) if self.dtype == torch.float32 else room

    @property
    def group(self) -> int:
        """Heads of a tile: all that share a KV head, or an even share of them if a tile has no room for all."""
        group = self.heads // self.kv_heads
        return next(size for size in range(min(group, self.room[0]), 0, -1) if group % size == 0)

    @property
    def prefill_tokens(self) -> int:
        """Of a tile."""
        return self.room[0] // self.group

    @property
    def split_rows(self) -> int:
        return max(_MIN_ROWS, _power_of_2(self.group))

    @property
    def split_tokens(self) -> int:
        """Of a tile that is computed by splits."""
        return self.split_rows // self.group

    @property
    def splits(self) -> int:
        """The most of a row: as many as give one row of one token enough programs."""
        most = 32 if self.value_dim > MAX_HEAD_DIM else 64  # one program holds all sums
        return min(max(_power_of_2(_PROGRAMS * self.group // self.heads), 4), most)

    @property
    def split_token_bytes(self) -> int:
        """What is kept of a token's splits until they are merged."""
        return self.heads * self.splits * (self.value_dim + 2) * 4


def prefill(q: Tensor, pages: Pages, rules: Rules, tiles: Tensor, out: Tensor) -> None:
    """Attends the tokens of ``tiles``, int32 [N, 3], of q ``[T, H, D]`` and writes them to out ``[T, H, Dv]``,
    contiguous."""
    shape = Shape.of(q, pages.k, pages.v)
    rows, _ = shape.room
    _prefill_kernel[(len(tiles), shape.heads // shape.group)](
        *(q, *_cache(q, pages), q if rules.sinks is None else rules.sinks, out),
        *(tiles, *_lengths(q, pages), *_numbers(rules)),
        SINKS=rules.sinks is not None,
        **_variant(shape, pages, rules),
        BLOCK_M=rows,
        num_warps=_warps(shape, rows),
        num_stages=2,
    )


def decode(
    q: Tensor,
    pages: Pages,
    rules: Rules,
    tiles: Tensor,
    num_tokens: int,
    sharing: Sharing | None,
    most_bytes: int,
    out: Tensor,
) -> None:
    """As `prefill`, for rows of few tokens, ``num_tokens`` altogether: the keys are split among programs.

    Where no rows share tiles, so many tiles at once as have their parts in ``most_bytes``; that changes no bit.
    """
    shape, count = Shape.of(q, pages.k, pages.v), len(tiles)
    if sharing is None:
        fitting = most_bytes // (shape.split_tokens * shape.split_token_bytes) // _TILES_TOGETHER * _TILES_TOGETHER
        count = min(count, max(fitting, _TILES_TOGETHER))
    sizes = min(num_tokens, count * shape.split_tokens), shape.heads, shape.splits
    parts = torch.empty(*sizes, shape.value_dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(*sizes, 2, dtype=torch.float32, device=q.device)
    for first in range(0, len(tiles), count):
        _decode(q, pages, rules, tiles[first : first + count], sharing, parts, sums, out)


def _decode(
    q: Tensor,
    pages: Pages,
    rules: Rules,
    tiles: Tensor,
    sharing: Sharing | None,
    parts: Tensor,
    sums: Tensor,
    out: Tensor,
) -> None:
    """Some tiles; parts and sums begin with those of the first one."""
    shape = Shape.of(q, pages.k, pages.v)
    heads, splits, rows = shape.heads, shape.splits, shape.split_rows
    longest = pages.table.shape[1] * pages.k.shape[2]
    _split_kernel[(len(tiles), heads // shape.group, min(splits, triton.cdiv(longest, FIRST_SPLIT.value)))](
        *(q, *_cache(q, pages), parts, sums, tiles, *_lengths(q, pages), *_numbers(rules)),
        *((tiles, tiles, tiles) if sharing is None else (sharing.shares, sharing.order, sharing.numbers)),
        len(pages.seq_lens),
        SHARED=0 if sharing is None else sharing.tokens,
        **_variant(shape, pages, rules),
        SPLITS=splits,
        BLOCK_M=rows,
        num_warps=_warps(shape, rows),
        num_stages=2 if shape.is_latent else 3,
    )
    _merge_kernel[(len(tiles), heads)](
        *(parts, sums, q if rules.sinks is None else rules.sinks, out),
        *(tiles, pages.cu_q, pages.seq_lens, rules.window or 0),
        SINKS=rules.sinks is not None,
        WINDOWED=rules.window is not None,
        HEADS=heads,
        VALUE=shape.value_dim,
        SPLITS=splits,
        TOKENS=shape.split_tokens,
        BLOCK_V=_padded(shape.value_dim),
        num_warps=4,
    )


def _cache(q: Tensor, pages: Pages) -> tuple[Tensor, ...]:
    """Keys, values and their scales; in place of scales that there are none of stands what is never read."""
    return (pages.k, pages.v, *(q if scale is None else scale for scale in (pages.k_scale, pages.v_scale)))


def _lengths(q: Tensor, pages: Pages) -> tuple[Any, ...]:
    return pages.cu_q, pages.seq_lens, pages.table, q.stride(0), q.stride(1), pages.table.stride(0)


def _numbers(rules: Rules) -> tuple[float, float, int]:
    return rules.scale, rules.softcap or 1.0, rules.window or 0


def _variant(shape: Shape, pages: Pages, rules: Rules) -> dict[str, Any]:
    return {
        "WINDOWED": rules.window is not None,
        "CAPPED": rules.softcap is not None,
        "SCALED": pages.k_scale is not None,
        "HEADS": shape.heads,
        "GROUP": shape.group,
        "KV_HEADS": shape.kv_heads,
        "PAGE": pages.k.shape[2],
        "DIM": shape.dim,
        "VALUE": shape.value_dim,
        "BLOCK_V": _padded(shape.value_dim),
        "BLOCK_R": _padded(shape.dim - shape.value_dim) if shape.is_latent else 0,
        "BLOCK_N": shape.room[1],
    }


def _warps(shape: Shape, rows: int) -> int:
    is_large = rows >= 128 or rows * _padded(shape.value_dim) >= 64 * 512
    return 8 if is_large or shape.dtype == torch.float32 else 4


def _padded(dim: int) -> int:
    return max(16, _power_of_2(dim))


def _power_of_2(x: int) -> int:
    """The first that is not less."""
    return int(triton.next_power_of_2(x))
