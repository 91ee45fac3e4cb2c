"""Checkpoints whose method is ``fp8``: blocks of 128 x 128 as DeepSeek has them, and Hugging Face's per tensor."""

from __future__ import annotations

import torch

from sgl.kernels.ops.linear import Activations
from sgl.quant.formats.float8 import Float8
from sgl.quant.scheme import Scheme
from sgl.quant.stored import Fields, Layout, Tensors, is_kept

_NAMES = ("weight_scale_inv", "weight_scale")
"""Of the factors; both multiply, whatever the first one's name says."""


def read(fields: Fields) -> Layout:
    kept = [*fields.names("modules_to_not_convert"), *fields.names("ignored_layers")]
    size = fields.get("weight_block_size")
    if size is not None and not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
        fields.refuse("weight_block_size", f"is {size!r}; it must be two integers")
    static = fields.get("activation_scheme", "dynamic") == "static"

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        header = tensors.get("weight")
        if is_kept(module, kept) or header is None or header.dtype != torch.float8_e4m3fn:
            return None
        name = next((name for name in _NAMES if name in tensors), _NAMES[0] if size else _NAMES[1])
        scales = tensors.get(name)
        if size is not None:
            return Float8("block", "block", (size[0], size[1]), name)
        activations: Activations = "tensor" if static else "token"
        per_row = scales is not None and scales.shape in ((header.shape[0],), (header.shape[0], 1))
        return Float8("channel" if per_row and header.shape[0] > 1 else "tensor", activations, name=name)

    return Layout("fp8", scheme_of)
