"""Implementations for NVIDIA GPUs in Triton, and such of torch as are best there; attention is in `sgl.engine.attn`."""

from sgl.kernels import ops  # the ops must be declared before anything implements them
from sgl.kernels.triton import activation, adjust, argmax, draw, linear, logprobs, lookup, moe, norm, rope, routing

__all__ = ["activation", "adjust", "argmax", "draw", "linear", "logprobs", "lookup", "moe", "norm"]
__all__ += ["ops", "rope", "routing"]
