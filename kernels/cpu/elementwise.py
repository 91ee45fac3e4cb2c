"""Norms, the choice of tokens and what surrounds a decode, through the C++ kernels (elementwise.cpp, draw.cpp)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sgl.kernels.cpu import native
from sgl.kernels.ops import norm
from sgl.kernels.ops.decode import Located
from sgl.kernels.ops.draw import Filters
from sgl.kernels.registry import impl

_library = functools.cache(native.library)  # these calls are short: looking for the library would take as long


@impl("norm.rms", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if weight.dim() > 1 or weight.dtype != x.dtype:
        return norm.rms_torch(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    _library().sgl_rms_norm(x.data_ptr(), rows, width, weight.data_ptr(), eps, out.data_ptr())
    return out


@impl("sample.argmax", "native", device="cpu", priority=20, needs=native.missing)
def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = logits.shape
    places, peaks = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    _library().sgl_argmax(logits.contiguous().data_ptr(), rows, width, places.data_ptr(), peaks.data_ptr())
    return places, peaks


@impl("sample.mask", "native", device="cpu", priority=20, needs=native.missing)
def mask(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    assert logits.is_contiguous()
    _library().sgl_mask(
        *(logits.data_ptr(), logits.shape[1], rows.data_ptr(), rows.shape[0]),
        masks.contiguous().data_ptr(),
    )


@impl("sample.draw", "native", device="cpu", priority=20, needs=native.missing)
def draw(logits: Tensor, filters: Filters, streams: Tensor, counters: Tensor) -> Tensor:
    rows, width = logits.shape
    numbers = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, streams, counters)
    columns = [column.contiguous() for column in numbers]
    token_ids = torch.empty(rows, dtype=torch.int64)
    places = (column.data_ptr() for column in columns)
    _library().sgl_draw(logits.contiguous().data_ptr(), rows, width, *places, token_ids.data_ptr())
    return token_ids


@impl("decode.locate", "native", device="cpu", priority=20, needs=native.missing)
def locate(tokens: Tensor, computed: Tensor, pages: Sequence[Tensor], page_size: int, slots: Tensor) -> Located:
    count = slots.shape[0]
    found = torch.empty(3 + len(pages), count, dtype=torch.int64)
    seq_lens = torch.empty(count, dtype=torch.int32)
    input_ids, positions, next_positions, *out_loc = found.unbind()
    _library().sgl_locate(
        *(tokens.data_ptr(), tokens.stride(0), computed.data_ptr(), slots.data_ptr(), count),
        *(input_ids.data_ptr(), positions.data_ptr(), next_positions.data_ptr(), seq_lens.data_ptr()),
    )
    for table, loc in zip(pages, out_loc, strict=True):
        _library().sgl_place(
            *(table.data_ptr(), table.stride(0), page_size, slots.data_ptr(), positions.data_ptr(), count),
            loc.data_ptr(),
        )
    return Located(input_ids, positions, next_positions, seq_lens, tuple(out_loc))


@impl("decode.commit", "native", device="cpu", priority=20, needs=native.missing)
def commit(tokens: Tensor, computed: Tensor, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    _library().sgl_commit(
        *(tokens.data_ptr(), tokens.stride(0), computed.data_ptr(), slots.data_ptr(), slots.shape[0]),
        *(positions.data_ptr(), token_ids.contiguous().data_ptr()),
    )
