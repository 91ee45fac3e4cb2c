"""Reads log probabilities of tokens out of logits; it never changes them.

They are those of the model itself, of its raw logits: before penalties, bias, masks, temperature and
filters, for prompt and output alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sgl.engine.base.types import Wants
from sgl.engine.runtime.batch import PromptSpan
from sgl.kernels.ops.logprobs import GatherLogprobs

MAX_ELEMENTS = 1 << 24
"""Positions times vocabulary that are worked on at once, which bounds temporary copies of logits to 64 MB each."""

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


def read_scores(
    logits: Tensor, token_ids: Tensor, wants: Sequence[Wants], upload: Upload, gather: GatherLogprobs
) -> Scores:
    """Picks what is wanted from the model's ``logits``, float32 [N, V]; ``token_ids``, int64 [N], are what followed.

    Args:
        gather: the op `sample.logprobs`.
    """
    found = gather(logits, token_ids, max((want.top_logprobs for want in wants), default=0))
    chosen = [(index, token_id) for index, want in enumerate(wants) for token_id in want.token_logprob_ids]
    rows, ids = upload(np.array(chosen, np.int64).reshape(-1, 2)).unbind(1)
    chosen_values = found.at(logits[rows, ids], rows)
    return Scores(tuple(wants), token_ids, found.values, found.top_ids, found.top_values, chosen_values)


def score_prompts(
    hidden: Tensor,
    spans: Sequence[PromptSpan],
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    upload: Upload,
    gather: GatherLogprobs,
) -> Iterator[Scores]:
    """Scores of prompt tokens behind a step's hidden states [T, hidden], block by block.

    Args:
        logits: a fresh float32 [N, V] for hidden states [N, hidden].
        gather: the op `sample.logprobs`.
    """
    sources = [source for span in spans for source in span.sources]
    targets = [span.init.token_ids[position] for span in spans for position in span.positions if position]
    wants = [span.init.wants for span in spans for _ in span.sources]
    size = max(MAX_ELEMENTS // vocab_size, 1)
    for part in (slice(start, start + size) for start in range(0, len(sources), size)):
        scored = logits(hidden[upload(np.array(sources[part]))])
        yield read_scores(scored, upload(np.array(targets[part])), wants[part], upload, gather)
