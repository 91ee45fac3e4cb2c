"""GPTQ: integers of 2, 3, 4 or 8 bits packed along the inputs, in an order of their own or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgl.kernels.ops.linear import QuantizedWeight
from sgl.quant.formats.packing import ordered, unpack
from sgl.quant.scheme import FLOATS, Part, Scheme
from sgl.quant.stored import Fields, Layout, Tensors, is_kept

_INT32 = (torch.int32,)


@dataclass(frozen=True, slots=True)
class GPTQ:
    """``qweight`` ``[K bits / 32, N]``, ``qzeros`` ``[G, N bits / 32]``, ``scales`` ``[G, N]``, ``g_idx`` ``[K]``.

    Args:
        group: inputs that share a scale; None for a scale per output.
        zero_offset: what is added to stored zero points: 1 in the first version of the format.
    """

    bits: Literal[2, 3, 4, 8]
    group: int | None
    zero_offset: int

    @property
    def label(self) -> str:
        return f"gptq-int{self.bits}" + (f"-g{self.group}" if self.group else "")

    def parts(self, rows: int, inner: int) -> tuple[Part, ...]:
        if inner * self.bits % 32 or rows * self.bits % 32:
            raise ValueError(f"{self.bits} bits of {inner} inputs or {rows} outputs do not fill words of 32")
        groups = -(-inner // self.group) if self.group else 1
        return (
            Part("qweight", _INT32, ((inner * self.bits // 32, rows),)),
            Part("qzeros", _INT32, ((groups, rows * self.bits // 32),)),
            Part("scales", FLOATS, ((groups, rows),)),
            Part("g_idx", _INT32, ((inner,),), optional=True),
        )

    def decode(self, tensors: Mapping[str, Tensor], rows: int, inner: int) -> QuantizedWeight:
        group, bits = self.group or inner, self.bits
        values = unpack(tensors["qweight"].t(), bits, inner)
        most = (1 << bits) - 1
        zeros = unpack(tensors["qzeros"], bits, rows).add_(self.zero_offset).bitwise_and_(most).t().contiguous()
        order = None
        if (groups := tensors.get("g_idx")) is not None:
            order = ordered(groups, inner, group)
            values = values if order is None else values[:, order]
        width: Literal[4, 8] = 8 if bits == 8 else 4
        is_middle = bool((zeros == 1 << width - 1).all())
        scales = tensors["scales"].t().float().contiguous()
        return QuantizedWeight(
            values.contiguous(), scales, None if is_middle else zeros, width, group, order, weight_only=True
        )


def read(fields: Fields) -> Layout:
    bits, size = fields.integer("bits", allowed=(2, 3, 4, 8)), fields.integer("group_size", -1)
    version = fields.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        fields.refuse("checkpoint_format", f"is {version!r}; supported are gptq and gptq_v2")
    if size < 1 and size != -1:
        fields.refuse("group_size", f"is {size}; it must be positive, or -1 for one group")
    scheme = GPTQ(bits, size if size > 0 else None, 1 if version == "gptq" else 0)  # type: ignore[arg-type] # checked
    kept = fields.names("modules_to_not_convert")

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        return scheme if "qweight" in tensors and not is_kept(module, kept) else None

    return Layout("gptq", scheme_of)
