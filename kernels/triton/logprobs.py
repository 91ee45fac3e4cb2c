"""Log probabilities of single tokens: spans of a row first, then what they have in common; the row is read once.

The likeliest of a span are taken out one by one, which is quick for as few as people ask for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.ops.logprobs import Logprobs
from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_SPAN = 4096
_PLACES = 32  # of the likeliest of a span
_LEAST = tl.constexpr(-3.0e38)  # what counts as -inf among tokens, so that none is passed over for a place without one


@bound
@triton.jit(do_not_specialize=["top"])
def _spans_kernel(
    logits: Pointer,
    peaks: Pointer,
    sums: Pointer,
    top_values: Pointer,
    top_ids: Pointer,
    width: Scalar,
    row_stride: Scalar,
    top: Scalar,
    PLACES: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """``top_values`` and ``top_ids``: ``[N, spans, PLACES]``; what is behind ``top`` stays undefined."""
    row, span = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = span * SPAN + tl.arange(0, SPAN)
    values = tl.load(logits + row * row_stride + column, column < width, float("-inf"))
    peak = tl.maximum(tl.max(values, 0), _LEAST)
    at = row * tl.num_programs(1) + span
    tl.store(peaks + at, peak)
    tl.store(sums + at, tl.sum(tl.exp(values - peak), 0))
    left = tl.where(column < width, tl.maximum(values, _LEAST), float("-inf"))
    for rank in range(top):
        best = tl.argmax(left, 0)
        tl.store(top_values + at * PLACES + rank, tl.max(left, 0))
        tl.store(top_ids + at * PLACES + rank, span * SPAN + best)
        left = tl.where(column == span * SPAN + best, float("-inf"), left)


@bound
@triton.jit(do_not_specialize=["top"])
def _join_kernel(
    logits: Pointer,
    token_ids: Pointer,
    span_peaks: Pointer,
    span_sums: Pointer,
    span_values: Pointer,
    span_ids: Pointer,
    values: Pointer,
    top_values: Pointer,
    top_ids: Pointer,
    row_peaks: Pointer,
    log_sums: Pointer,
    row_stride: Scalar,
    spans: Scalar,
    top: Scalar,
    SPANS: tl.constexpr,
    PLACES: tl.constexpr,
) -> None:
    row, span = tl.program_id(0).to(tl.int64), tl.arange(0, SPANS)
    peaks = tl.load(span_peaks + row * spans + span, span < spans, float("-inf"))
    sums = tl.load(span_sums + row * spans + span, span < spans, 0.0)
    peak = tl.max(peaks, 0)
    log_sum = tl.log(tl.sum(sums * tl.exp(peaks - peak), 0))
    tl.store(row_peaks + row, peak)
    tl.store(log_sums + row, log_sum)
    tl.store(values + row, (tl.load(logits + row * row_stride + tl.load(token_ids + row)) - peak) - log_sum)
    place = tl.arange(0, SPANS * PLACES)
    present = (place < spans * PLACES) & (place % PLACES < top)
    left = tl.load(span_values + row * spans * PLACES + place, present, float("-inf"))
    for rank in range(top):
        best = tl.argmax(left, 0)
        token = tl.load(span_ids + row * spans * PLACES + best).to(tl.int64)
        tl.store(top_ids + row * top + rank, token)
        tl.store(top_values + row * top + rank, (tl.load(logits + row * row_stride + token) - peak) - log_sum)
        left = tl.where(place == best, float("-inf"), left)


@impl("sample.logprobs", "triton", device="cuda", priority=20)
def logprobs(logits: Tensor, token_ids: Tensor, top: int) -> Logprobs:
    (rows, width), device = logits.shape, logits.device
    few = top if top <= _PLACES else 0
    spans = cdiv(width, _SPAN)
    values, row_peaks, log_sums = torch.empty(3, rows, device=device).unbind()
    top_values = torch.empty(rows, few, device=device)
    top_ids = torch.empty(rows, few, dtype=torch.int64, device=device)
    if rows:
        peaks, sums = torch.empty(2, rows, spans, device=device).unbind()
        span_values = torch.empty(rows, spans, _PLACES, device=device)
        span_ids = torch.empty(rows, spans, _PLACES, dtype=torch.int32, device=device)
        _spans_kernel[(rows, spans)](
            *(logits, peaks, sums, span_values, span_ids, width, logits.stride(0), few),
            PLACES=_PLACES,
            SPAN=_SPAN,
            num_warps=8,
        )
        _join_kernel[(rows,)](
            *(logits, token_ids, peaks, sums, span_values, span_ids, values, top_values, top_ids),
            *(row_peaks, log_sums, logits.stride(0), spans, few),
            SPANS=padded(spans),
            PLACES=_PLACES,
        )
    if few < top:
        best = logits.topk(top, dim=-1)
        top_values, top_ids = (best.values - row_peaks[:, None]) - log_sums[:, None], best.indices
    return Logprobs(values, top_ids, top_values, row_peaks, log_sums)
