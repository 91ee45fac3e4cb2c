"""Draws by the C++ kernel, with every instruction set that this processor has, beside the reference's."""

from __future__ import annotations

import math

import pytest
import torch

from sgl.kernels.checks.sampling import every_filter
from sgl.kernels.cpu import elementwise, native
from sgl.kernels.ops.draw import draw as reference

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

ROWS = 60  # as many as there are combinations of filters


@pytest.fixture(autouse=True)
def library(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the instruction set, which is looked up once otherwise."""
    found = native.library(isa)
    monkeypatch.setattr(elementwise, "_library", lambda: found)


@pytest.mark.parametrize("width", [31, 32, 1023, 1025, 5000])
def test_the_same_tokens_are_drawn(width: int) -> None:
    torch.manual_seed(width)
    logits = torch.randn(ROWS, width) * 3
    logits[::2] = logits[::2].round()  # ties at the limits
    logits[1] = 1.0
    logits[2, : width // 2] = -math.inf
    filters = every_filter(ROWS, width)
    streams, counters = torch.randint(-(1 << 62), 1 << 62, (ROWS,)), torch.arange(ROWS)
    drawn = elementwise.draw(logits, filters, streams, counters)
    assert torch.equal(drawn, reference(logits, filters, streams, counters))
    assert torch.equal(drawn[:1], elementwise.draw(logits[:1], filters, streams, counters)), "alone and with others"


def test_rows_without_a_distribution_answer_some_token() -> None:
    logits = torch.zeros(6, 50)
    logits[:2, 3] = math.nan
    logits[2:4] = -math.inf
    logits[4:, 7] = math.inf
    tokens = elementwise.draw(logits, every_filter(6, 50), torch.arange(6), torch.arange(6))
    assert ((tokens >= 0) & (tokens < 50)).all()
