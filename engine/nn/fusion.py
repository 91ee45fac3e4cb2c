"""Recognises layers that the CPU can run in one native call; a model that is not made of them runs layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sgl.engine.nn.attention import Attention
from sgl.engine.nn.mlp import Mlp
from sgl.engine.nn.norm import RmsQKNorm
from sgl.engine.nn.rope import Rope
from sgl.engine.nn.spec import ModelSpec
from sgl.kernels.cpu.decoder import FusedDecoder, FusedLayer
from sgl.kernels.cpu.linear import NativeLinear
from sgl.kernels.registry import Kernels

if TYPE_CHECKING:
    from sgl.engine.nn.decoder import Layer


REPLACED = {"norm.rms", "norm.add_rms", "rope.apply", "kv.store"}
"""Ops that the one call computes itself: forcing an implementation of one of them keeps the layers apart."""


def fuse(
    spec: ModelSpec, layers: Sequence[Layer], rotations: Sequence[object], kernels: Kernels
) -> FusedDecoder | None:
    """The loaded ``layers`` as one call, or None where they differ from each other or from what it computes."""
    attention = spec.layers[0].attention
    shapes = [(replace(layer.attention, window=None), layer.mlp) for layer in spec.layers]
    joined = [fused for fused in (_fused_layer(layer) for layer in layers) if fused is not None]
    if (
        len(joined) < len(layers)
        or any(shape != shapes[0] for shape in shapes)
        or spec.norms != "pre"
        or spec.norm.kind != "rms"
        or spec.norm.offset
        or not spec.is_causal
        or attention.qk_norm_eps not in (None, spec.norm.eps)
        or kernels.forced & REPLACED
        or not isinstance(rotations[0], Rope)
    ):
        return None
    return FusedDecoder(
        joined,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        frequencies=rotations[0].frequencies,
        rope_scale=rotations[0].scale,
        scale=attention.scale,
        softcap=attention.softcap,
        eps=spec.norm.eps,
    )


def _fused_layer(layer: Layer) -> FusedLayer | None:
    """None where a product is not the native one, or not followed by its gate."""
    attention, mlp, q_norm, k_norm = layer.attention, layer.mlp, None, None
    if not isinstance(mlp, Mlp) or not isinstance(attention, Attention):
        return None
    qkv, out, up, down = attention.qkv.state, attention.out.state, mlp.up.state, mlp.down.state
    if not (isinstance(qkv, NativeLinear) and isinstance(out, NativeLinear) and isinstance(down, NativeLinear)):
        return None
    if not isinstance(up, NativeLinear) or up.form != "gated":
        return None
    if isinstance(attention.qk_norm, RmsQKNorm):
        q_norm, k_norm = attention.qk_norm.weight[0], attention.qk_norm.weight[attention.spec.num_heads]
    return FusedLayer(
        attention_norm=layer.attention_norm.tensors[0],
        mlp_norm=layer.mlp_norm.tensors[0],
        q_norm=q_norm,
        k_norm=k_norm,
        qkv=qkv,
        out=out,
        gate_up=up,
        down=down,
        window=attention.spec.window,
        sinks=attention.sinks.scores,
    )
