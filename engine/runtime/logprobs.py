"""Reads log probabilities of tokens out of logits; it never changes them.

They are those of the model itself, `log_softmax` of its raw logits: before penalties, bias, masks, temperature and
filters, for prompt and output alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sgl.engine.base.types import Wants

Upload = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Scores:
    """What N positions say about the token that followed, on the device."""

    wants: tuple[Wants, ...]  # per position
    token_ids: Tensor  # int64 [N]
    values: Tensor  # float32 [N], of those tokens
    top_ids: Tensor  # int64 [N, K], K the most alternatives that any position wants
    top_values: Tensor  # float32 [N, K]
    chosen_values: Tensor  # float32, of all `Wants.token_logprob_ids` in a row


def read_scores(logprobs: Tensor, token_ids: Tensor, wants: Sequence[Wants], upload: Upload) -> Scores:
    """Picks what is wanted from ``logprobs``, float32 [N, V]; ``token_ids``, int64 [N], are what followed."""
    top = logprobs.topk(max((want.top_logprobs for want in wants), default=0), dim=-1)
    chosen = [(index, token_id) for index, want in enumerate(wants) for token_id in want.token_logprob_ids]
    rows, ids = upload(np.array(chosen, np.int64).reshape(-1, 2)).unbind(1)
    values = logprobs.gather(1, token_ids[:, None]).squeeze(1)
    return Scores(tuple(wants), token_ids, values, top.indices, top.values, logprobs[rows, ids])
