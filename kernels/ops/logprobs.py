"""Log probabilities of single tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sgl.kernels.registry import op


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of N rows of logits, in float32."""

    values: Tensor  # [N], of one token each
    top_ids: Tensor  # int64 [N, K], the likeliest first
    top_values: Tensor  # [N, K]
    peaks: Tensor  # [N], the largest logit
    log_sums: Tensor  # [N], of the exponentials of all logits less the largest

    def at(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The log probabilities of single logits of some rows. The largest is taken off first: what is left is exact
        for those that matter."""
        return (logits - self.peaks[rows]) - self.log_sums[rows]


GatherLogprobs = Callable[[Tensor, Tensor, int], Logprobs]


@op("sample.logprobs")
def logprobs(logits: Tensor, token_ids: Tensor, top: int) -> Logprobs:
    """Reads logits ``[N, V]`` float32, which it does not change, at a token of each row and at the ``top`` likeliest.

    A row with NaN has values that are NaN, and any tokens at its top.

    Args:
        token_ids: int64 ``[N]``.
        top: at most V; of equals any may come first.
    """
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(top, dim=-1)
    values = logprobs.gather(1, token_ids[:, None]).squeeze(1)
    peaks = logits.amax(-1)
    log_sums = -logprobs.amax(-1)
    return Logprobs(values, best.indices, best.values, peaks, log_sums)
