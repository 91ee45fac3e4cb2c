"""The likeliest tokens, and those that masks leave."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgl.kernels.registry import impl, op

Argmax = Callable[[Tensor], tuple[Tensor, Tensor]]
Mask = Callable[[Tensor, Tensor, Tensor], None]

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


@op("sample.mask")
def mask(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """Adds -inf, in some rows of logits ``[N, V]`` float32, to the tokens whose bit is 0; what is NaN stays NaN.

    Args:
        rows: int64 ``[R]``, all different.
        masks: uint8 ``[R, ceil(V / 8)]``, a bit for each token, the least significant first.
    """
    bits = (masks[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=masks.device)) & 1
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits[rows] += logits.new_zeros(()).where(~forbidden, float("-inf"))
