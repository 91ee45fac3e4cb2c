"""The largest score and its place, by every implementation that runs on this machine."""

from __future__ import annotations

import math

import pytest
import torch

from sgl.engine.base.device import detect_isa
from sgl.kernels.registry import Impl, implementations

IMPLS = [i for i in implementations() if i.op == "sample.argmax" and not i.why_not("cpu", detect_isa(), torch.float32)]


@pytest.mark.parametrize("vocab_size", [1, 7, 16, 33, 8191, 8192, 10_000, 16_384])
@pytest.mark.parametrize("impl", IMPLS, ids=lambda impl: impl.name)
def test_it_is_the_first_of_the_largest(impl: Impl, vocab_size: int) -> None:
    logits = torch.randint(0, 50, (64, vocab_size), generator=torch.Generator().manual_seed(0)).float()
    logits[0, -1] = logits[1, vocab_size // 2] = 99.0
    logits[2] = -math.inf
    logits[3, : vocab_size // 2] = -math.inf
    logits[4] = math.inf
    places, peaks = impl.fn(logits)
    assert places.equal(torch.from_numpy(logits.numpy().argmax(-1)))
    assert peaks.equal(logits.amax(-1))


@pytest.mark.parametrize("impl", IMPLS, ids=lambda impl: impl.name)
@pytest.mark.parametrize("vocab_size", [7, 100, 10_000])
def test_a_nan_anywhere_is_the_largest(impl: Impl, vocab_size: int) -> None:
    logits = torch.zeros(vocab_size, vocab_size)[:100]
    logits.diagonal().fill_(math.nan)
    places, peaks = impl.fn(logits)
    assert peaks.isnan().all() and ((places >= 0) & (places < vocab_size)).all()


@pytest.mark.parametrize("impl", IMPLS, ids=lambda impl: impl.name)
def test_no_rows_have_no_largest(impl: Impl) -> None:
    places, peaks = impl.fn(torch.empty(0, 50))
    assert places.shape == peaks.shape == (0,)
