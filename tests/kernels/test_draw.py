"""Draws by Triton, under its interpreter, beside the reference's."""

from __future__ import annotations

import math
import random
import sys
from types import ModuleType

import pytest
import torch

from sgl.engine.base.types import KnownMasks
from sgl.engine.runtime.sampler import Sampler, SamplingOps
from sgl.kernels.checks.sampling import every_filter
from sgl.kernels.ops.draw import draw as reference
from sgl.kernels.registry import bind
from tests.runtime.test_sampler import VOCAB, make_draws, make_table, random_init, random_mask

pytest.importorskip("triton")
from sgl.kernels.triton.draw import draw, look_up

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled for the GPU here")


@pytest.mark.parametrize("seed", range(2))
def test_the_same_tokens_are_drawn(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(12, 500) * 3
    logits[::2] = logits[::2].round()  # ties at the limits
    filters, streams, counters = every_filter(12, 500), torch.randint(-(1 << 62), 1 << 62, (12,)), torch.arange(12)
    assert torch.equal(draw(logits, filters, streams, counters), reference(logits, filters, streams, counters))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, where the interpreter converts NaN
def test_rows_without_a_distribution_answer_some_token() -> None:
    logits = torch.zeros(6, 50)
    logits[:2, 3] = math.nan
    logits[2:4] = -math.inf
    logits[4:, 7] = math.inf
    tokens = draw(logits, every_filter(6, 50), torch.arange(6), torch.arange(6))
    assert ((tokens >= 0) & (tokens < 50)).all()


def test_filtered_distributions_of_any_sum_are_looked_up() -> None:
    probs = torch.tensor([[0.0, 3.0, 0.0], [0.2, 0.0, 0.0]])
    assert look_up(probs, torch.arange(2), torch.arange(2)).tolist() == [1, 0]


def fake_flashinfer() -> dict[str, ModuleType]:
    """FlashInfer's two functions as its documentation tells of them: what is filtered out is 0, the rest sums to 1."""

    def top_k_renorm_probs(probs: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
        assert top_k.dtype == torch.int32 and ((top_k >= 1) & (top_k <= probs.shape[1])).all()
        least = probs.sort(-1, descending=True).values.gather(1, top_k.long()[:, None] - 1)
        kept = probs * (probs >= least)
        return kept / kept.sum(-1, keepdim=True)

    def top_p_renorm_probs(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
        ordered = probs.sort(-1, descending=True).values
        count = ((ordered.cumsum(-1) - ordered) < top_p[:, None]).sum(-1, keepdim=True)
        kept = probs * (probs >= ordered.gather(1, count - 1))
        return kept / kept.sum(-1, keepdim=True)

    sampling = ModuleType("flashinfer.sampling")
    vars(sampling).update(top_k_renorm_probs=top_k_renorm_probs, top_p_renorm_probs=top_p_renorm_probs)
    return {"flashinfer": ModuleType("flashinfer"), "flashinfer.sampling": sampling}


def test_flashinfer_filters_draw_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl.kernels.flashinfer import sampling

    for name, module in fake_flashinfer().items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(5)
    logits, filters = torch.randn(12, 500) * 3, every_filter(12, 500)
    streams, counters = torch.randint(-(1 << 62), 1 << 62, (12,)), torch.arange(12)
    wanted = reference(logits, filters, streams, counters)
    assert torch.equal(sampling.draw(logits, filters, streams, counters), wanted)


def test_a_sampler_of_these_kernels_answers_what_one_of_references_does() -> None:
    """Penalties, edits, masks and filters of random requests together."""
    rng = random.Random(1)
    inits = [random_init(rng) for _ in range(16)]
    logits = torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    table, draws = make_table(inits), make_draws(inits, list(range(16)))
    ops = SamplingOps.of(bind("cuda", "sm90", torch.bfloat16, ("sample.argmax=triton", "sample.draw=triton")))
    masks = KnownMasks({row: random_mask(rng) for row in range(0, 16, 3)})
    adjusted, expected = logits.clone(), logits.clone()
    theirs = Sampler(table).sample(expected, draws, masks)
    ours = Sampler(table, ops).sample(adjusted, draws, masks)
    torch.testing.assert_close(adjusted, expected)
    assert torch.equal(ours.token_ids, theirs.token_ids) and torch.equal(ours.peaks, adjusted.amax(-1))
