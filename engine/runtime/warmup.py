"""Steps of no request, in which everything is compiled that is compiled on first use; runs none of them."""

from __future__ import annotations

from collections.abc import Iterator

from sgl.engine.base.types import PageRun, Row, RowInit, RowKind, SamplingParams, StepPlan, Wants

LONGEST = 512
_LENGTHS = (12, 24, 48, 96, LONGEST)
"""Kernels are compiled for some heights of their tiles, and are others for few tokens: one prompt for each."""

_MORE = 4
_PARAMS = SamplingParams(temperature=1.0, top_k=8, top_p=0.9, min_p=0.01)
_OTHERS = SamplingParams(
    temperature=0.0,
    frequency_penalty=0.1,
    repetition_penalty=1.1,
    logit_bias=((0, 1.0),),
    min_new_tokens=1,
)
"""What a request may ask for beside them."""


def first_steps(max_tokens: int, page_size: int, *, samples: bool) -> Iterator[StepPlan]:
    """Prompts in slot 0 and its first pages, each with a decode behind it; nothing where not even that fits.

    Args:
        max_tokens: that a sequence may have, and the whole KV cache.
        samples: whether the model answers with tokens.
    """
    kind: RowKind = "token" if samples else "none"
    for place, num_tokens in enumerate(sorted({min(length, max_tokens - _MORE) for length in _LENGTHS})):
        if num_tokens < 1:
            continue
        pages = PageRun(0, tuple(range(-(-(num_tokens + _MORE) // page_size))))
        params, wants = (_PARAMS, Wants()) if place % 2 else (_OTHERS, Wants(logprobs=True, top_logprobs=1))
        ids = (0,) * num_tokens
        init = RowInit(token_ids=ids, num_prompt=num_tokens, params=params, wants=wants, eos_ids=())
        row = Row(rid="", slot=0, num_tokens=num_tokens, kind=kind, init=init, computed=0, new_pages=pages)
        yield StepPlan(0, (row,), (0,))
        if samples:
            yield StepPlan(0, (Row(rid="", slot=0, num_tokens=1, kind=kind),))
