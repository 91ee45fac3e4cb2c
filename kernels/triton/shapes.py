"""Arithmetic of launches; Triton's own functions for it take microseconds on the host."""

from __future__ import annotations


def cdiv(count: int, size: int) -> int:
    """How many parts of ``size`` hold ``count``."""
    return -(-count // size)


def padded(count: int) -> int:
    """The least power of two that is not below a positive ``count``."""
    return 1 << (count - 1).bit_length()
