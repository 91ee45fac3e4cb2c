"""The likeliest tokens; what is drawn at random is the sampler's business."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl.kernels.registry import impl, op

_SCAN_WIDTH = 512  # tokens that are first looked at together


@op("sample.argmax")
def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits ``[N, V]`` float32 the places of the largest, the first of equals, int64 ``[N]``, and the largest.

    In a row with NaN the place is any, and the largest is NaN.
    """
    return logits.argmax(-1), logits.amax(-1)


@impl("sample.argmax", "torch")
def argmax_torch(logits: Tensor) -> tuple[Tensor, Tensor]:
    """CPUs find a largest value with vector instructions, but its place one by one: so the block, then the place."""
    vocab_size = logits.shape[1]
    num_blocks = vocab_size // _SCAN_WIDTH
    if num_blocks < 16:
        return argmax(logits)
    blocks = logits[:, : num_blocks * _SCAN_WIDTH].view(len(logits), num_blocks, _SCAN_WIDTH)
    peaks = torch.cat([blocks.amax(-1), logits[:, -_SCAN_WIDTH:].amax(-1, keepdim=True)], dim=1)
    starts = (peaks.argmax(-1) * _SCAN_WIDTH).clamp_(max=vocab_size - _SCAN_WIDTH)
    places = starts[:, None] + torch.arange(_SCAN_WIDTH, device=logits.device)
    return starts + logits.gather(1, places).argmax(-1), peaks.amax(-1)
