"""Sampling written out in numpy, one row at a time in float64: what the vectorised sampler must agree with."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sgl.engine.base.types import RowInit, SamplingParams


def adjusted_logits(logits: np.ndarray, init: RowInit, mask: bytes | None = None) -> np.ndarray:
    """Penalties, bias, stop suppression and mask on one row [V]; ``init.token_ids`` is all that is known."""
    x = logits.astype(np.float64)
    params = init.params
    outputs = Counter(init.token_ids[init.num_prompt :])
    for token_id, bias in params.logit_bias:
        x[token_id] += bias
    for token_id, count in outputs.items():
        x[token_id] -= params.frequency_penalty * count + params.presence_penalty
    for token_id in set(init.token_ids):
        x[token_id] *= params.repetition_penalty if x[token_id] < 0 else 1 / params.repetition_penalty
    if outputs.total() < params.min_new_tokens:
        for token_id in {*init.eos_ids, *params.stop_token_ids}:
            x[token_id] = -np.inf
    if mask is not None:
        for token_id in range(len(x)):
            if not mask[token_id // 8] >> token_id % 8 & 1:
                x[token_id] = -np.inf
    return x


def distribution(x: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The filtered, normalised distribution of adjusted logits [V]."""
    p = np.exp(x / params.temperature - np.max(x / params.temperature))
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda token_id: -p[token_id])
    kept = np.zeros(len(p), bool)
    before = 0.0
    for rank, token_id in enumerate(order):
        in_k = params.top_k < 0 or rank < params.top_k
        in_p = params.top_p >= 1 or before <= params.top_p
        kept[token_id] = in_k and in_p and p[token_id] >= params.min_p * p.max()
        before += p[token_id]
    return np.where(kept, p, 0) / p[kept].sum()


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    """Standard deviations by which counts exceed what ``probs`` let expect; beyond 5 they differ."""
    expected = counts.sum() * probs
    common = expected >= 5
    assert counts[probs == 0].sum() == 0
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    degrees = max(len(wanted) - 1, 1)
    return float((((observed - wanted) ** 2 / wanted).sum() - degrees) / np.sqrt(2 * degrees))
