"""Small unsigned integers in words: knows how many bits they have, not what they mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 words ``[R, C]``, the lowest bits first -> uint8 ``[R, count]``; values of 3 bits go across words."""
    if 32 % bits:
        return _unpack_stream(words, bits, count)
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    values = words.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_((1 << bits) - 1)
    return values.to(torch.uint8).flatten(1)[:, :count]


def pack(values: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack` for bits that divide 32; the last word is filled up with zeros."""
    per_word = 32 // bits
    padded = functional.pad(values.long(), (0, -values.shape[1] % per_word)).view(values.shape[0], -1, per_word)
    shifts = torch.arange(0, 32, bits, device=values.device)
    words = padded.bitwise_left_shift(shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _unpack_stream(words: Tensor, bits: int, count: int) -> Tensor:
    bytes_ = words.contiguous().view(torch.uint8).view(words.shape[0], -1)
    places = torch.arange(8, dtype=torch.uint8, device=words.device)
    stream = bytes_.unsqueeze(-1).bitwise_right_shift(places).bitwise_and_(1).flatten(1)[:, : count * bits]
    weights = torch.tensor([1 << i for i in range(bits)], dtype=torch.uint8, device=words.device)
    return (stream.view(words.shape[0], count, bits) * weights).sum(-1, dtype=torch.uint8)


def nibbles(packed: Tensor) -> Tensor:
    """uint8 ``[R, C]`` -> ``[R, 2C]``, the low half first."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(1)


def pack_nibbles(values: Tensor) -> Tensor:
    """The inverse of `nibbles`."""
    pairs = values.view(values.shape[0], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def ordered(groups: Tensor, inner: int, group: int) -> Tensor | None:
    """The inputs by their group, from the group of each (``g_idx``); None where they stand in that order already.

    Raises:
        ValueError: the groups are not of one size.
    """
    count = -(-inner // group)
    groups = groups.long()
    if int(groups.min()) < 0 or int(groups.max()) >= count:
        raise ValueError(f"g_idx names groups outside 0 to {count - 1}")
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order], torch.arange(inner, device=groups.device) // group):
        raise ValueError(f"g_idx does not give every group {group} inputs")
    return None if torch.equal(order, torch.arange(inner, device=order.device)) else order
