"""Normalisation over the last dimension, alone or after a residual add; statistics are taken in float32.

Weights and biases are in the precision of x or in float32. The implementations named ``torch`` are its fused norms:
fewer calls than the references on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sgl.kernels.registry import impl, op


@op("norm.rms")
def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight``, a new tensor. x ``[T, D]`` and weight ``[D]``, or ``[T, H, D]`` and ``[H, D]``."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


@op("norm.layer")
def layer(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``(x - mean(x)) / std(x) * weight + bias``, a new tensor. x ``[T, D]``, weight and bias ``[D]``."""
    x32 = x.float()
    centred = x32 - x32.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * scale * weight.float() + bias.float()).to(x.dtype)


@op("norm.add_rms")
def add_rms(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``residual + x`` and its `rms`: (normed, sum), both ``[T, D]``. Either input may be overwritten."""
    total = residual + x
    return rms(total, weight, eps), total


@op("norm.add_layer")
def add_layer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``residual + x`` and its `layer`: (normed, sum), both ``[T, D]``. Either input may be overwritten."""
    total = residual + x
    return layer(total, weight, bias, eps), total


@impl("norm.rms", "torch")
def rms_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if weight.dtype != x.dtype:
        return rms(x, weight, eps)
    if weight.dim() == 1:
        return functional.rms_norm(x, weight.shape, weight, eps)
    return functional.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)


@impl("norm.layer", "torch")
def layer_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if weight.dtype != x.dtype:
        return layer(x, weight, bias, eps)
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


@impl("norm.add_rms", "torch")
def add_rms_torch(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual = residual.add_(x)
    return rms_torch(residual, weight, eps), residual


@impl("norm.add_layer", "torch")
def add_layer_torch(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual = residual.add_(x)
    return layer_torch(residual, weight, bias, eps), residual
