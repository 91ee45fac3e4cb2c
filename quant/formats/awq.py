"""AWQ in AutoAWQ's ``gemm`` layout: 4-bit integers packed along the outputs in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.quant.formats.packing import unpack
from sgl.quant.scheme import FLOATS, Part, Scheme
from sgl.quant.stored import Fields, Layout, Tensors, is_kept

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of eight outputs stands."""


@dataclass(frozen=True, slots=True)
class AWQ:
    """``qweight`` ``[K, N / 8]``, ``qzeros`` ``[G, N / 8]``, ``scales`` ``[G, N]``."""

    group: int

    @property
    def label(self) -> str:
        return f"awq-int4-g{self.group}"

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        if inner % self.group or rows % 8:
            raise ValueError(
                f"{inner} inputs cannot be shared out to groups of {self.group}, or {rows} outputs to words"
            )
        groups = inner // self.group
        return (
            Part("qweight", (torch.int32,), ((inner, rows // 8),)),
            Part("qzeros", (torch.int32,), ((groups, rows // 8),)),
            Part("scales", FLOATS, ((groups, rows),)),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        values, zeros = (_columns(tensors[name], rows) for name in ("qweight", "qzeros"))
        scales = tensors["scales"].t().float().contiguous()
        return QuantizedWeight(values, scales, zeros, 4, self.group, weight_only=True)


def _columns(words: Tensor, rows: int) -> Tensor:
    """int32 ``[R, N / 8]`` -> uint8 ``[N, R]``."""
    values = unpack(words, 4, rows).view(words.shape[0], -1, 8)
    return values[..., list(_PLACES)].flatten(1).t().contiguous()


def read(fields: Fields) -> Layout:
    fields.integer("bits", fields.get("w_bit"), allowed=(4,))
    version = str(fields.get("version", "gemm")).lower()
    if version != "gemm":
        fields.refuse("version", f"is {version!r}; supported is gemm")
    if not fields.flag("zero_point", True):
        fields.refuse("zero_point", "is false; supported are weights with zero points")
    size = fields.integer("group_size", fields.get("q_group_size", 128))
    if size < 1:
        fields.refuse("group_size", f"is {size}; it must be positive")
    kept = fields.names("modules_to_not_convert")

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        return AWQ(size) if "qweight" in tensors and not is_kept(module, kept) else None

    return Layout("awq", scheme_of)
