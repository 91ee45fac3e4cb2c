"""The ops: a name, a signature and a plain torch reference each."""

from sgl.kernels.ops import (
    activation,
    decode,
    draw,
    embedding,
    heads,
    kv,
    linear,
    logprobs,
    moe,
    norm,
    penalty,
    quantize,
    random,
    rope,
    routing,
    sampling,
)

__all__ = ["activation", "decode", "draw", "embedding", "heads", "kv", "linear", "moe", "norm", "penalty", "quantize"]
__all__ += ["logprobs", "random", "rope", "routing", "sampling"]
