"""Masks, and penalties on what came before.

Tokens mark their places in a table as wide as the vocabulary. One that stands several times changes its logit once: by
whoever is first to find the mark.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.penalty import Sequences
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Block, Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv

_BLOCK = 1024


@triton.jit
def _read(
    tokens: Pointer, slots: Pointer, begin: Scalar, ends: Pointer, user: Scalar, max_len: Scalar, BLOCK: tl.constexpr
) -> tuple[Block, Block]:
    """A block of what stands in a user's slot, and which of it counts."""
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    counted = (place >= begin) & (place < tl.load(ends + user))
    return tl.load(tokens + tl.load(slots + user) * max_len + place, counted, 0), counted


@bound
@triton.jit
def _count_kernel(
    tokens: Pointer,
    slots: Pointer,
    begins: Pointer,
    ends: Pointer,
    counts: Pointer,
    max_len: Scalar,
    vocab_size: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    user = tl.program_id(0).to(tl.int64)
    token, counted = _read(tokens, slots, tl.load(begins + user), ends, user, max_len, BLOCK)
    tl.atomic_add(counts + user * vocab_size + token, 1, counted)


@bound
@triton.jit
def _take_kernel(
    logits: Pointer,
    rows: Pointer,
    tokens: Pointer,
    slots: Pointer,
    begins: Pointer,
    ends: Pointer,
    counts: Pointer,
    frequencies: Pointer,
    presences: Pointer,
    row_stride: Scalar,
    max_len: Scalar,
    vocab_size: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    user = tl.program_id(0).to(tl.int64)
    token, counted = _read(tokens, slots, tl.load(begins + user), ends, user, max_len, BLOCK)
    count = tl.atomic_xchg(counts + user * vocab_size + token, 0, counted)
    first = counted & (count > 0)
    place = logits + tl.load(rows + user) * row_stride + token
    taken = tl.load(frequencies + user) * count.to(tl.float32) + tl.load(presences + user)
    tl.store(place, tl.load(place, first) - taken, first)


@bound
@triton.jit
def _repetition_kernel(
    logits: Pointer,
    rows: Pointer,
    tokens: Pointer,
    slots: Pointer,
    ends: Pointer,
    marks: Pointer,
    penalties: Pointer,
    row_stride: Scalar,
    max_len: Scalar,
    vocab_size: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    user = tl.program_id(0).to(tl.int64)
    token, counted = _read(tokens, slots, 0, ends, user, max_len, BLOCK)
    first = counted & (tl.atomic_xchg(marks + user * vocab_size + token, 1, counted) == 0)
    place, penalty = logits + tl.load(rows + user) * row_stride + token, tl.load(penalties + user)
    value = tl.load(place, first, 0.0)
    tl.store(place, tl.where(value > 0, value / penalty, value * penalty), first)


@bound
@triton.jit
def _mask_kernel(
    logits: Pointer,
    rows: Pointer,
    masks: Pointer,
    width: Scalar,
    num_bytes: Scalar,
    row_stride: Scalar,
    BLOCK: tl.constexpr,
) -> None:
    masked, token = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    byte = tl.load(masks + masked * num_bytes + token // 8, inside, 255).to(tl.int32)
    forbidden = inside & (((byte >> (token % 8)) & 1) == 0)
    place = logits + tl.load(rows + masked) * row_stride + token
    tl.store(place, tl.load(place, forbidden, 0.0) + float("-inf"), forbidden)


@impl("sample.mask", "triton", device="cuda", priority=20)
def mask(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    width = logits.shape[1]
    if len(rows):
        _mask_kernel[(len(rows), cdiv(width, _BLOCK))](
            *(logits, rows, masks, width, masks.stride(0), logits.stride(0)), BLOCK=_BLOCK
        )


def _grid(sequences: Sequences) -> tuple[int, int]:
    return len(sequences.rows), cdiv(sequences.width, _BLOCK)


def _marks(logits: Tensor, sequences: Sequences) -> Tensor:
    return torch.zeros(len(sequences.rows), logits.shape[1], dtype=torch.int32, device=logits.device)


@impl("sample.penalize_outputs", "triton", device="cuda", priority=20)
def penalize_outputs(logits: Tensor, sequences: Sequences, begins: Tensor, frequency: Tensor, presence: Tensor) -> None:
    counts, max_len, vocab_size = _marks(logits, sequences), sequences.tokens.stride(0), logits.shape[1]
    where = (sequences.tokens, sequences.slots, begins, sequences.ends, counts)
    _count_kernel[_grid(sequences)](*where, max_len, vocab_size, BLOCK=_BLOCK)
    _take_kernel[_grid(sequences)](
        *(logits, sequences.rows, *where, frequency, presence),
        *(logits.stride(0), max_len, vocab_size),
        BLOCK=_BLOCK,
    )


@impl("sample.penalize_repetition", "triton", device="cuda", priority=20)
def penalize_repetition(logits: Tensor, sequences: Sequences, penalty: Tensor) -> None:
    marks = _marks(logits, sequences)
    _repetition_kernel[_grid(sequences)](
        *(logits, sequences.rows, sequences.tokens, sequences.slots, sequences.ends, marks, penalty),
        *(logits.stride(0), sequences.tokens.stride(0), logits.shape[1]),
        BLOCK=_BLOCK,
    )
