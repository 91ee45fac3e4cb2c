"""What several Triton kernels share inside a kernel; launches nothing.

Numbers that change from step to step are ``do_not_specialize`` in the kernels: what is known of a model is worth a
compilation of its own, what is true of a batch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    Pointer = Any
    Scalar = Any
    Block = Any
else:
    Pointer = Scalar = Block = tl.tensor  # Triton takes no other annotations than types of its own

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a: Block, b: Block, acc: Block) -> Block:
    """``acc + a @ b``, b in the type of a. The interpreter takes bfloat16 for the integers that it keeps it in: there
    both are widened."""
    if INTERPRETED:
        acc += tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        acc = tl.dot(a, b.to(a.dtype), acc)
    return acc


@triton.jit
def tanh(x: Block) -> Block:
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def fp8(x: Block) -> Block:
    """float32 within +-448 to the nearest e4m3. The interpreter cuts off instead: there it is rounded before."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF  # leaves three places of the fraction
        normal = bits.to(tl.float32, bitcast=True)
        x = tl.where(tl.abs(x) < 2.0**-6, (x + 24576.0) - 24576.0, normal)  # below they are multiples of 2**-9
    return x.to(tl.float8e4nv)
