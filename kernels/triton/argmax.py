"""The largest score of every row and its place: spans of a row first, then the best of the spans."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sgl.kernels.registry import impl
from sgl.kernels.triton.device import Pointer, Scalar
from sgl.kernels.triton.launch import bound
from sgl.kernels.triton.shapes import cdiv, padded

_SPAN = 4096


@bound
@triton.jit
def _spans_kernel(
    logits: Pointer, peaks: Pointer, places: Pointer, width: Scalar, row_stride: Scalar, SPAN: tl.constexpr
) -> None:
    row, span = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = span * SPAN + tl.arange(0, SPAN)
    values = tl.load(logits + row * row_stride + column, column < width, float("-inf"))
    is_nan = values != values
    ordered = tl.where(is_nan, float("inf"), values)
    peak = tl.max(ordered, 0)
    found = tl.sum(is_nan.to(tl.int32), 0)
    at = row * tl.num_programs(1) + span
    tl.store(places + at, span * SPAN + tl.argmax(ordered, 0))
    tl.store(peaks + at, tl.where(found > 0, float("nan"), peak))


@bound
@triton.jit
def _best_kernel(
    span_peaks: Pointer, span_places: Pointer, places: Pointer, peaks: Pointer, spans: Scalar, SPANS: tl.constexpr
) -> None:
    row, span = tl.program_id(0).to(tl.int64), tl.arange(0, SPANS)
    values = tl.load(span_peaks + row * spans + span, span < spans, float("-inf"))
    is_nan = values != values
    ordered = tl.where(is_nan, float("inf"), values)
    best = tl.argmax(ordered, 0)
    peak = tl.where(tl.sum(is_nan.to(tl.int32), 0) > 0, float("nan"), tl.max(ordered, 0))
    tl.store(places + row, tl.load(span_places + row * spans + best).to(tl.int64))
    tl.store(peaks + row, peak)


@impl("sample.argmax", "triton", device="cuda", priority=20)
def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = logits.shape
    spans, device = cdiv(width, _SPAN), logits.device
    places, peaks = torch.empty(rows, dtype=torch.int64, device=device), torch.empty(rows, device=device)
    if rows:
        span_peaks = torch.empty(rows, spans, device=device)
        span_places = torch.empty(rows, spans, dtype=torch.int32, device=device)
        _spans_kernel[(rows, spans)](logits, span_peaks, span_places, width, logits.stride(0), SPAN=_SPAN, num_warps=8)
        _best_kernel[(rows,)](span_peaks, span_places, places, peaks, spans, SPANS=padded(spans), num_warps=1)
    return places, peaks
