"""Cases of the ops that choose tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sgl.kernels.checks.case import Case, random
from sgl.kernels.ops.draw import Filter, Filters
from sgl.kernels.ops.penalty import Sequences
from sgl.kernels.ops.random import uniform

Answer = tuple[list[Tensor], list[Tensor]]


def cases() -> Iterator[Case]:
    yield from (_argmax(*shape) for shape in ((1, 9000), (3, 40), (40, 8192)))
    yield from (_draw(*shape) for shape in ((1, 40), (2, 5000), (9, 300)))
    yield from (replace(case, large=True) for case in (_argmax(64, 151_936), _draw(64, 151_936)))
    yield from (_logprobs(*shape) for shape in ((1, 9000, 0), (3, 40, 5), (40, 8192, 1), (2, 50, 50), (2, 4100, 40)))
    yield replace(_logprobs(64, 151_936, 20), large=True)
    yield from (_mask(*shape) for shape in ((1, 9000), (3, 13), (6, 45), (80, 8192)))
    yield from (_outputs(*shape) for shape in ((1, 1), (5, 40)))
    yield from (_repetition(*shape) for shape in ((1, 1), (5, 40)))


def _argmax(rows: int, vocab_size: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits = random(rows, vocab_size).float()
        places, peaks = fn(logits)
        wanted = logits.double().amax(-1)
        return [logits.gather(1, places[:, None])[:, 0], peaks], [wanted, wanted]

    return Case("sample.argmax", f"{rows}x{vocab_size}", run, torch.float32)


def _logprobs(rows: int, vocab_size: int, top: int) -> Case:
    """Of three rows one has tokens that cannot come, and one tokens that are equally likely."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits, token_ids = (random(rows, vocab_size) * 3).float(), torch.randint(0, vocab_size, (rows,))
        logits[2::3, vocab_size // 4 : vocab_size // 2] = -torch.inf
        logits[1::3, ::2] = 12.0
        before = logits.clone()
        found = fn(logits, token_ids, top)
        assert torch.equal(logits, before) and all(len(set(ids)) == top for ids in found.top_ids.tolist())
        exact = before.double().log_softmax(-1)
        wanted = [exact.gather(1, token_ids[:, None])[:, 0], exact.sort(descending=True).values[:, :top]]
        got = [
            found.values,
            found.top_values,
            exact.gather(1, found.top_ids).float(),
            found.at(before[:, 0], torch.arange(rows)),
        ]
        wanted += [wanted[1], exact[:, 0]]
        return [x.nan_to_num(neginf=-99.0) for x in got], [x.nan_to_num(neginf=-99.0) for x in wanted]

    return Case("sample.logprobs", f"{top} of {rows}x{vocab_size}", run, torch.float32)


def _mask(rows: int, vocab_size: int) -> Case:
    """Every second row is masked; a NaN stays one."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits, masked = random(rows, vocab_size).float(), torch.arange(0, rows, 2)
        packed = torch.randint(0, 256, (len(masked), -(-vocab_size // 8)), dtype=torch.uint8)
        logits[0, vocab_size // 3] = torch.nan
        token = torch.arange(vocab_size)
        allowed = (packed[:, token // 8].int() >> token % 8) & 1
        wanted = logits.double()
        wanted[masked] += torch.where(allowed == 1, 0.0, -torch.inf).double()
        fn(logits, masked, packed)
        return [logits.nan_to_num(nan=-8.0, neginf=-9.0)], [wanted.nan_to_num(nan=-8.0, neginf=-9.0)]

    return Case("sample.mask", f"{rows}x{vocab_size}", run, torch.float32)


def _draw(rows: int, vocab_size: int) -> Case:
    """How far each row's number lies outside the span of its token in the cumulative distribution."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits = (random(rows, vocab_size) * 3).float()
        filters = every_filter(rows, vocab_size)
        streams = torch.randint(-(1 << 62), 1 << 62, (rows,))
        counters = torch.randint(0, 1 << 20, (rows,))
        token_ids = fn(logits.clone(), filters, streams, counters)
        probs = torch.stack([_filtered(row, filters, index) for index, row in enumerate(logits.double())])
        ends = probs.cumsum(1).gather(1, token_ids[:, None])[:, 0]
        shares = probs.gather(1, token_ids[:, None])[:, 0]
        numbers = uniform(streams, counters)
        outside = torch.maximum(numbers - ends, ends - shares - numbers).clamp(min=0)
        assert (shares > 0).all(), "a token that was filtered out"
        return [(1 + outside).float()], [torch.ones(rows, dtype=torch.float64)]

    return Case("sample.draw", f"{rows}x{vocab_size}", run, torch.float32)


def every_filter(rows: int, vocab_size: int) -> Filters:
    """Every combination of filters, one row after the other."""
    index = torch.arange(rows)
    top_k = torch.tensor([-1, 5, vocab_size, 30])[index % 4]
    top_p = torch.tensor([1.0, 0.4, 0.95])[index % 3]
    min_p = torch.tensor([0.0, 0.0, 0.05, 0.0, 0.3])[index % 5]
    flags = {"top_k": (top_k > 0) & (top_k < vocab_size), "top_p": top_p < 1, "min_p": min_p > 0}
    users: dict[Filter, list[int]] = {"top_k": [], "top_p": [], "min_p": []}
    for name in users:
        users[name] = [row for row, used in enumerate(flags[name].tolist()) if used]
    most = 30 if rows > 3 else 5
    return Filters(0.3 + 0.2 * (index % 7).float(), top_k, top_p, min_p, users, most)


def _filtered(row: Tensor, filters: Filters, index: int) -> Tensor:
    """One distribution in float64, by sorting."""
    probs = (row / filters.temperature[index].double()).softmax(0)
    ordered, order = probs.sort(descending=True, stable=True)
    top_k, top_p = int(filters.top_k[index]), float(filters.top_p[index])
    before = ordered.cumsum(0) - ordered
    kept = (ordered >= ordered[0] * float(filters.min_p[index])) & ((before <= top_p) | (top_p >= 1))
    if top_k > 0:
        kept &= torch.arange(len(row)) < top_k
    filtered = torch.zeros_like(probs).scatter_(0, order, ordered * kept)
    return filtered / filtered.sum()


def _sequences(users: int, width: int) -> Sequences:
    """Few different tokens, so that they come again; what is beyond the ends is not to be read."""
    tokens = torch.randint(0, 12, (users + 2, width + 3), dtype=torch.int32)
    ends = torch.randint(1, width + 1, (users,))
    slots, rows = torch.randperm(users + 2)[:users], torch.randperm(users + 1)[:users]
    for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
        tokens[slot, end:] = 1 << 30
    return Sequences(rows, slots, tokens, ends, width)


def _outputs(users: int, width: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits, sequences = random(users + 1, 15).float(), _sequences(users, width)
        begins = (sequences.ends * torch.rand(users)).long()
        frequency, presence = random(users).float(), random(users).float()
        wanted = logits.double()
        for user, (row, slot) in enumerate(zip(sequences.rows.tolist(), sequences.slots.tolist(), strict=True)):
            stretch = sequences.tokens[slot, begins[user] : sequences.ends[user]]
            for token, count in Counter(stretch.tolist()).items():
                wanted[row, token] -= frequency[user].double() * count + presence[user].double()
        fn(logits, sequences, begins, frequency, presence)
        return [logits], [wanted]

    return Case("sample.penalize_outputs", f"{users} users, {width} tokens", run, torch.float32)


def _repetition(users: int, width: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> Answer:
        logits, sequences = random(users + 1, 15).float(), _sequences(users, width)
        penalty = 0.5 + torch.rand(users)
        wanted = logits.double()
        for user, (row, slot) in enumerate(zip(sequences.rows.tolist(), sequences.slots.tolist(), strict=True)):
            for token in set(sequences.tokens[slot, : sequences.ends[user]].tolist()):
                factor = penalty[user].double()
                wanted[row, token] *= factor if wanted[row, token] < 0 else 1 / factor
        fn(logits, sequences, penalty)
        return [logits], [wanted]

    return Case("sample.penalize_repetition", f"{users} users, {width} tokens", run, torch.float32)
