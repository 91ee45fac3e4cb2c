"""Implementations for the CPU."""

from sgl.kernels import ops  # the ops must be declared before anything implements them
from sgl.kernels.cpu import elementwise, heads, linear, onednn

__all__ = ["elementwise", "heads", "linear", "onednn", "ops"]
