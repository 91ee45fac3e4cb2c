"""Asks the engine for one token, to prove that it can: after the start, and for `/health_generate`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams


async def generate_one_token(engine: AsyncEngine, timeout_s: float) -> None:
    """
    Raises:
        SglError: 503; no token came in time, or none at all.
    """
    params = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    request = GenerateRequest(input_ids=[0], sampling=params)
    try:
        async with asyncio.timeout(timeout_s), aclosing(engine.generate(request)) as items:
            num_tokens = sum([item.completion_tokens async for item in items])
    except TimeoutError:
        raise _unhealthy(f"none came within {timeout_s:g} s.") from None
    except SglError as error:
        raise _unhealthy(error.message) from error
    if num_tokens != 1:
        raise _unhealthy("the request was aborted.")


def _unhealthy(reason: str) -> SglError:
    text = f"The engine does not generate tokens: {reason}"
    return SglError(text, code="engine_unhealthy", status=503, retryable=True)
