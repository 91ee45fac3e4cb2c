"""Whole distributions over the vocabulary, behind hidden states that requests have brought; runs no layer of the model.

A distribution is a row of the vocabulary's length, so those of a prompt would be gigabytes: whoever wants them asks for
the hidden states of its tokens, which are small, and then block by block for what the model's own head makes of them.
"""

from __future__ import annotations

from typing import Any

import torch

from sgl.engine.base.device import Device
from sgl.engine.base.errors import SglError
from sgl.engine.nn.spec import ModelSpec
from sgl.engine.runtime.loaded import Loaded
from sgl.engine.runtime.result import to_bytes

MAX_ELEMENTS = 1 << 24
"""Log probabilities of one answer: 64 MiB."""


class Distributions:
    """Those of the model that is loaded.

    Args:
        dtype: the one that the model computes in; hidden states came from it, so that going back to it loses nothing.
    """

    def __init__(self, loaded: Loaded, device: Device, dtype: torch.dtype, spec: ModelSpec) -> None:
        self._loaded = loaded
        self._device = device
        self._dtype = dtype
        self._spec = spec

    @torch.inference_mode()
    def logprobs(self, hidden: bytes) -> dict[str, Any]:
        """float32 ``[N, V]`` as bytes, for hidden states float32 ``[N, hidden]``.

        Raises:
            SglError: they are not rows of the model's width, more than fit an answer, or the model has no head.
        """
        spec, width = self._spec, self._spec.hidden_size * 4
        if spec.pooling is not None:
            raise SglError("This model answers with vectors; it has no probabilities of tokens.", param="hidden")
        if len(hidden) % width or not 0 < len(hidden) // width * spec.vocab_size <= MAX_ELEMENTS:
            most = MAX_ELEMENTS // spec.vocab_size
            message = f"hidden must be 1 to {most} float32 vectors of {spec.hidden_size}, got {len(hidden)} bytes."
            raise SglError(message, param="hidden")
        rows = torch.frombuffer(bytearray(hidden), dtype=torch.float32).view(-1, spec.hidden_size)
        logits = self._loaded.logits(rows.to(self._device.torch_device, self._dtype))
        return {"logprobs": to_bytes(logits.log_softmax(-1), self._device)}
