"""Counter-based random numbers: a draw is a function of a stream and a position, never of what was drawn before.

So an answer depends neither on what it was batched with, nor on chunking, preemption or rejected drafts. The generator
is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), which can be entered anywhere.
"""

from __future__ import annotations

from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31
_MASK = (1 << 64) - 1


def stream_of(seed: int) -> int:
    """The start of a seed's stream, as a signed 64-bit number; mixed, so that neighbouring seeds are far apart."""
    z = seed & _MASK
    for shift, factor in MIX:
        z = (z ^ (z >> shift)) * factor & _MASK
    return _signed(z ^ (z >> LAST_SHIFT))


def uniform(streams: Tensor, counters: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits.

    Args:
        streams: int64 [N], from `stream_of`.
        counters: int64 [N], the place in each stream.

    Returns:
        float64 [N].
    """
    z = streams + (counters + 1) * _signed(GAMMA)
    for shift, factor in MIX:
        z = (z ^ _shift(z, shift)) * _signed(factor)
    z = z ^ _shift(z, LAST_SHIFT)
    return _shift(z, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(z: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own repeats the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)
