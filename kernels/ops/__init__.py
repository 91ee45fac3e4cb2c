"""The ops: a name, a signature and a plain torch reference each."""

from sgl.kernels.ops import (
    activation,
    decode,
    draw,
    embedding,
    kv,
    linear,
    moe,
    norm,
    penalty,
    quantize,
    random,
    rope,
    sampling,
)

__all__ = ["activation", "decode", "draw", "embedding", "kv", "linear", "moe", "norm", "penalty", "quantize"]
__all__ += ["random", "rope", "sampling"]
