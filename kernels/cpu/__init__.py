"""Implementations for the CPU."""

from sgl.kernels import ops  # the ops must be declared before anything implements them
from sgl.kernels.cpu import linear, onednn

__all__ = ["linear", "onednn", "ops"]
