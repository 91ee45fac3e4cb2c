"""Draws with FlashInfer's filters; the number that is looked up is the request's own, as everywhere."""

from __future__ import annotations

from torch import Tensor

from sgl.kernels.ops.draw import Filters
from sgl.kernels.registry import impl, importable
from sgl.kernels.triton.draw import look_up


@impl("sample.draw", "flashinfer", device="cuda", isa="sm80", priority=5, needs=importable("flashinfer"))
def draw(logits: Tensor, filters: Filters, streams: Tensor, counters: Tensor) -> Tensor:
    """Top-p comes before top-k: the likeliest of what top-p leaves are those that both leave."""
    from flashinfer.sampling import top_k_renorm_probs, top_p_renorm_probs

    probs, vocab_size = (logits / filters.temperature[:, None]).softmax(-1), logits.shape[1]
    if filters.users["top_p"]:
        probs = top_p_renorm_probs(probs, filters.top_p.clamp(max=1.0))
    if filters.users["top_k"]:
        everything = (filters.top_k < 1) | (filters.top_k > vocab_size)
        probs = top_k_renorm_probs(probs, filters.top_k.masked_fill(everything, vocab_size).int())
    if filters.users["min_p"]:
        floors = probs.amax(-1, keepdim=True) * filters.min_p[:, None]
        probs = probs.masked_fill(probs < floors, 0.0)
    return look_up(probs, streams, counters)
