"""Norms and the search for the largest score, through the C++ kernels (elementwise.cpp)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sgl.kernels.cpu import native
from sgl.kernels.ops import norm
from sgl.kernels.registry import impl

_library = functools.cache(native.library)  # these calls are short: looking for the library would take as long


@impl("norm.rms", "native", device="cpu", dtypes=(torch.bfloat16,), priority=20, needs=native.missing)
def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if weight.dim() > 1:
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
