"""What the engine is sent for a request that was checked: one message for each of its answers."""

from __future__ import annotations

import time

import msgspec

from sgl.engine.api.limits import Prompt
from sgl.engine.api.request import GenerateRequest
from sgl.engine.base.processors import read_processor
from sgl.engine.base.types import Request, Wants


def engine_request(
    name: str, request: GenerateRequest, prompt: Prompt, seed: int, index: int, eos_ids: tuple[int, ...]
) -> Request:
    """
    Args:
        name: by which the engine knows this answer.
        seed: of the first answer.
        index: which answer; the first one alone brings the logprobs of the prompt.
        eos_ids: tokens that end an answer.
    """
    processor = None
    if request.custom_logit_processor is not None:
        processor = read_processor(request.custom_logit_processor, request.custom_params)
    return Request(
        rid=name,
        token_ids=prompt.token_ids,
        embeds=prompt.embeds,
        params=msgspec.structs.replace(
            request.sampling, max_new_tokens=prompt.max_new_tokens, seed=(seed + index) % 2**63, processor=processor
        ),
        wants=_wants(request, of_prompt=index == 0),
        eos_ids=eos_ids,
        priority=request.priority,
        cache_salt=request.cache_salt,
        arrival_s=time.monotonic(),
        pooling=request.pooling,
    )


def _wants(request: GenerateRequest, of_prompt: bool) -> Wants:
    if not request.return_logprob:
        return Wants(hidden=request.return_hidden_states)
    return Wants(
        logprobs=True,
        logprob_start=request.logprob_start_len if of_prompt and request.logprob_start_len >= 0 else None,
        top_logprobs=request.top_logprobs_num,
        token_logprob_ids=tuple(request.token_ids_logprob),
        hidden=request.return_hidden_states,
    )
