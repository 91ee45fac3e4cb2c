import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sgl.engine.base.types import (
    HostDraws,
    KnownMasks,
    PageRun,
    Row,
    RowInit,
    SamplingParams,
    StepPlan,
    TokenLogprob,
    Wants,
)
from sgl.engine.runtime.batch import Draws
from sgl.engine.runtime.result import read_logprobs
from sgl.engine.runtime.sampler import Sampler, Samples
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.ops.draw import top_k_floors, top_p_floors, weights
from tests.runtime import naive

VOCAB = 300
PAGE = 4
CPU = torch.device("cpu")
NOTHING = Wants()


def make_table(inits: list[RowInit], vocab_size: int = VOCAB) -> SlotTable:
    """A table in which request ``i`` has slot ``i``."""
    table = SlotTable(len(inits), 64, PAGE, vocab_size, CPU)
    rows = []
    for slot, init in enumerate(inits):
        pages = PageRun(0, tuple(range(len(init.token_ids) // PAGE + 1)))
        rows.append(Row(rid=str(slot), slot=slot, num_tokens=1, kind="token", init=init, computed=0, new_pages=pages))
    table.apply(StepPlan(0, tuple(rows)))
    return table


def make_draws(inits: list[RowInit], slots: list[int]) -> Draws:
    """One draw for each of ``slots``, after all that its request knows."""
    positions = torch.tensor([len(inits[slot].token_ids) for slot in slots])
    return Draws(tuple(range(len(slots))), tuple(slots), torch.tensor(slots), positions)


def sample(inits: list[RowInit], logits: torch.Tensor, slots: list[int] | None = None, masks: dict = {}) -> Samples:  # noqa: B006
    slots = list(range(len(inits))) if slots is None else slots
    return Sampler(make_table(inits, logits.shape[1])).sample(
        logits.clone(), make_draws(inits, slots), KnownMasks(masks)
    )


def random_params(rng: random.Random) -> SamplingParams:
    pick = rng.choice
    return SamplingParams(
        temperature=pick([0.0, 0.3, 0.7, 1.0, 1.0, 1.8]),
        top_k=pick([-1, -1, 1, 2, 7, 40, VOCAB, 10**6]),
        top_p=pick([1.0, 1.0, 0.05, 0.5, 0.9, 0.999]),
        min_p=pick([0.0, 0.0, 0.02, 0.3, 1.0]),
        frequency_penalty=pick([0.0, 0.0, 0.5, -1.5]),
        presence_penalty=pick([0.0, 0.0, 1.1, -0.4]),
        repetition_penalty=pick([1.0, 1.0, 1.3, 0.7]),
        min_new_tokens=pick([0, 0, 3, 20]),
        stop_token_ids=pick([(), (5, 9)]),
        logit_bias=pick([(), ((3, 4.0), (5, -2.5), (299, 100.0), (17, -100.0))]),
        seed=rng.randrange(2**63),
    )


def random_init(rng: random.Random, params: SamplingParams | None = None, wants: Wants = NOTHING) -> RowInit:
    num_prompt = rng.randint(1, 12)
    tokens = tuple(rng.randrange(20) for _ in range(num_prompt + rng.choice([0, 1, 9])))
    params = params or random_params(rng)
    return RowInit(token_ids=tokens, num_prompt=num_prompt, params=params, wants=wants, eos_ids=(1, 2, VOCAB + 50))


def random_mask(rng: random.Random, num_bytes: int = -(-VOCAB // 8)) -> bytes:
    return bytes(rng.choice([0, 255, rng.randrange(256)]) for _ in range(num_bytes))


@pytest.mark.parametrize("seed", range(8))
def test_adjusted_logits_and_distributions_equal_the_naive_ones(seed: int) -> None:
    rng = random.Random(seed)
    inits = [random_init(rng) for _ in range(24)]
    logits = torch.randn(24, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    masks = {row: random_mask(rng) for row in range(0, 24, 3)}
    table, draws = make_table(inits), make_draws(inits, list(range(24)))
    adjusted = logits.clone()
    samples = Sampler(table).sample(adjusted, draws, KnownMasks(masks))
    for row, init in enumerate(inits):
        init = RowInit(
            token_ids=init.token_ids, num_prompt=init.num_prompt, params=init.params, wants=init.wants, eos_ids=(1, 2)
        )
        expected = naive.adjusted_logits(logits[row].numpy(), init, masks.get(row))
        np.testing.assert_allclose(adjusted[row].numpy(), expected, rtol=1e-5, atol=1e-5)
        token_id = int(samples.token_ids[row])
        if init.params.temperature == 0 or init.params.top_k == 1:
            assert token_id == int(adjusted[row].argmax())
            continue
        one = draws.take([row], torch.tensor([row]))
        shares = weights(adjusted[row : row + 1], Sampler(table).filters(one)).double()
        probs = naive.distribution(adjusted[row].double().numpy(), init.params)
        np.testing.assert_array_equal(shares[0].numpy() > 0, probs > 1e-12)
        np.testing.assert_allclose((shares / shares.sum())[0].numpy(), probs, atol=1e-6)
        assert probs[token_id] > 0


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=20, top_p=0.8),
        SamplingParams(min_p=0.1, top_k=VOCAB),
    ],
)
@pytest.mark.parametrize("vary", ["position", "seed"])
def test_frequencies_follow_the_distribution(params: SamplingParams, vary: str) -> None:
    count = 4000
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    if vary == "seed":
        requests = [replace(params, seed=seed) for seed in range(count)]
        slots, positions = torch.arange(count), torch.ones(count, dtype=torch.int64)
    else:
        requests = [params]
        slots, positions = torch.zeros(count, dtype=torch.int64), torch.arange(1, count + 1)
    inits = [RowInit(token_ids=(7,), num_prompt=1, params=p, wants=Wants(), eos_ids=()) for p in requests]
    draws = Draws(tuple(range(count)), tuple(slots.tolist()), slots, positions)
    samples = Sampler(make_table(inits)).sample(logits.repeat(count, 1), draws, KnownMasks())
    counts = np.bincount(samples.token_ids.numpy(), minlength=VOCAB)
    assert naive.chi_square(counts, naive.distribution(logits.double().numpy(), params)) < 5


def replace(params: SamplingParams, **changes: object) -> SamplingParams:
    import msgspec

    return msgspec.structs.replace(params, **changes)


def test_a_token_does_not_depend_on_what_else_is_in_the_batch() -> None:
    rng = random.Random(5)
    inits = [random_init(rng) for _ in range(16)]
    logits = torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(5)) * 3
    alone = [int(sample(inits, logits[slot : slot + 1], [slot]).token_ids[0]) for slot in range(16)]
    for _ in range(10):
        slots = rng.sample(range(16), rng.randint(2, 16))
        assert sample(inits, logits[slots], slots).token_ids.tolist() == [alone[slot] for slot in slots]


def test_a_token_does_not_depend_on_the_slot_or_on_preemption() -> None:
    """The same request with its outputs taken back in elsewhere draws the same number."""
    params = SamplingParams(seed=11)
    init = RowInit(token_ids=(4, 5, 6, 9, 9), num_prompt=3, params=params, wants=Wants(), eos_ids=())
    other = RowInit(token_ids=(1,), num_prompt=1, params=SamplingParams(seed=12), wants=Wants(), eos_ids=())
    logits = torch.zeros(1, VOCAB)
    first = sample([init, other], logits, [0]).token_ids
    second = sample([other, other, init], logits, [2]).token_ids
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("vocab_size", [40, 5000, 151_936])
def test_floors_equal_those_of_a_sort(vocab_size: int) -> None:
    """On multiples of 2**-24, which float64 adds up exactly; there are ties and zeros among them."""
    generator = torch.Generator().manual_seed(vocab_size)
    scales = torch.tensor([0.0, 0.5, 2.0, 8.0, 30.0])[:, None]
    probs = (torch.randn(5, vocab_size, generator=generator) * scales).softmax(-1).mul(2**24).floor().div(2**24)
    ordered = probs.double().sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    top_k = torch.tensor([1, 3, 10, 39, 40])
    for share in (1e-9, 0.1, 0.5, 0.95, 0.9999, 1.0):
        top_p = torch.full((5,), share)
        in_p = (before <= top_p.double()[:, None]).sum(-1)
        for floors, count in (
            (top_k_floors(probs, top_k, 40, top_p), top_k.minimum(in_p)),
            (top_p_floors(probs, top_p), in_p),
        ):
            assert (probs >= floors).equal(probs >= ordered.gather(1, count[:, None] - 1)), share


def test_ties_stay_together() -> None:
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]])
    assert top_k_floors(probs, torch.tensor([2]), 2, torch.tensor([1.0])).item() == pytest.approx(0.2)
    assert top_p_floors(probs, torch.tensor([0.5])).item() == pytest.approx(0.2)
    assert top_p_floors(probs, torch.tensor([0.85])).item() == pytest.approx(0.1)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    rng = random.Random(3)
    wants = [
        Wants(logprobs=True, top_logprobs=k, token_logprob_ids=ids) for k, ids in ((0, ()), (5, (0, 299)), (2, (8,)))
    ]
    inits = [random_init(rng, wants=want) for want in (*wants, Wants())]
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(3)) * 5
    samples = sample(inits, logits, masks={0: random_mask(rng)})
    assert samples.scored == (0, 1, 2)
    entries = list(read_logprobs(samples.scores))
    exact = logits.double().log_softmax(-1)
    for row, (entry, want) in enumerate(zip(entries, wants, strict=True)):
        token_id = int(samples.token_ids[row])
        top = exact[row].topk(want.top_logprobs)
        expected = TokenLogprob(
            token_id,
            pytest.approx(float(exact[row, token_id]), abs=1e-5),
            tuple(
                (i, pytest.approx(v, abs=1e-5)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ),
            tuple((i, pytest.approx(float(exact[row, i]), abs=1e-5)) for i in want.token_logprob_ids),
        )
        assert entry == expected


@pytest.mark.parametrize("num_bytes", [-(-VOCAB // 8), -(-VOCAB // 32) * 4, 10])
def test_masks_of_any_length_let_only_allowed_tokens_through(num_bytes: int) -> None:
    rng = random.Random(num_bytes)
    inits = [random_init(rng, SamplingParams(temperature=t, seed=s)) for s, t in enumerate((0.0, 1.0, 2.0))]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        masks = {row: random_mask(rng, num_bytes) for row in (0, 2)}
        token_ids = sample(inits, logits, masks=masks).token_ids.tolist()
        for row, mask in masks.items():
            assert mask[token_ids[row] // 8] >> token_ids[row] % 8 & 1
    only = bytearray(num_bytes)
    only[79 // 8] = 1 << 79 % 8
    assert sample(inits, logits, masks=dict.fromkeys(range(3), bytes(only))).token_ids.tolist() == [79] * 3


class Grammars:
    """Masks that may be asked about single tokens; keeps which rows had to be read."""

    def __init__(self, masks: dict[int, bytes]) -> None:
        self.rows = masks
        self.have_read: set[int] = set()

    def settle(self, rows: Sequence[int], draws: HostDraws) -> int:
        tokens = draws.token_ids
        for row, draw in zip(rows, draws.draws, strict=True):
            tokens[draw] = self._settle(self.rows[row], tokens[draw])
        return sum(tokens[draw] < 0 for draw in draws.draws)

    def advance(self, rows: Sequence[int], draws: HostDraws) -> None:
        raise AssertionError("no logits have been limited")

    @staticmethod
    def _settle(mask: bytes, likeliest: int) -> int:
        allowed = [token_id for token_id in range(VOCAB) if mask[token_id // 8] >> token_id % 8 & 1]
        return allowed[0] if len(allowed) == 1 else likeliest if likeliest in allowed else -1

    def read(self, rows: Sequence[int]) -> list[bytes]:
        self.have_read.update(rows)
        return [self.rows[row] for row in rows]


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_read_only_where_the_likeliest_token_does_not_do(seed: int) -> None:
    rng = random.Random(seed)
    inits = [random_init(rng) for _ in range(40)]
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    masks = {row: random_mask(rng) for row in range(0, 40, 2)}
    forced = {row: rng.randrange(VOCAB) for row in (0, 4, 8, 12, 16, 20)}
    masks |= {row: (1 << token_id).to_bytes(VOCAB // 8 + 1, "little") for row, token_id in forced.items()}
    sampler, draws = Sampler(make_table(inits)), make_draws(inits, list(range(40)))
    adjusted, grammars = logits.clone(), Grammars(masks)
    plain = sampler.sample(adjusted, draws, KnownMasks(masks))
    asked = sampler.sample(logits.clone(), draws, grammars)
    assert asked.token_ids.equal(plain.token_ids)
    random_rows = {row for row, init in enumerate(inits) if init.params.temperature > 0 and init.params.top_k != 1}
    unmasked = sampler.sample(logits.clone(), draws, KnownMasks()).token_ids
    refused = {row for row in masks if unmasked[row] != plain.token_ids[row]}
    assert grammars.have_read == ((random_rows & set(masks)) | (refused - random_rows)) - set(forced)
    assert grammars.have_read < set(masks)


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_the_outermost_numbers_draw_the_outermost_allowed_tokens(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sgl.kernels.ops.draw.uniform", lambda streams, counters: torch.full((1,), number, dtype=torch.float64)
    )
    allowed = bytearray(-(-VOCAB // 8))
    for token_id in (30, 40, 200):
        allowed[token_id // 8] |= 1 << token_id % 8
    init = random_init(random.Random(0), SamplingParams())
    token_ids = sample([init], torch.zeros(1, VOCAB), masks={0: bytes(allowed)}).token_ids
    assert token_ids.tolist() == [30 if number == 0 else 200]


def test_min_new_tokens_keeps_stops_away_until_they_are_due() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [1, 8]] = torch.tensor([50.0, 40.0])
    for num_output, expected in ((0, 0), (2, 0), (3, 1)):
        params = SamplingParams(temperature=0.0, min_new_tokens=3, stop_token_ids=(8,))
        tokens = (5, 6, *[30] * num_output)
        init = RowInit(token_ids=tokens, num_prompt=2, params=params, wants=Wants(), eos_ids=(1,))
        assert sample([init], logits).token_ids.tolist() == [expected]


def test_a_broken_row_is_told_from_the_others() -> None:
    rng = random.Random(0)
    inits = [
        random_init(rng, SamplingParams(temperature=t, top_p=p, top_k=k))
        for t, p, k in [(0, 1, -1)] + [(1, 0.5, k) for k in (-1, 5, -1, 9)]
    ]
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))
    good = sample(inits, logits).token_ids.tolist()
    logits[0, 3] = math.nan
    logits[1] = math.nan
    logits[2, 7] = math.inf
    masks = {3: bytes(VOCAB), 4: b"\xff" * VOCAB}
    samples = sample(inits, logits, masks=masks)
    assert samples.peaks.isfinite().tolist() == [False, False, False, False, True]
    assert samples.peaks[3] == -math.inf
    assert samples.token_ids[4] == good[4]
    assert all(0 <= token_id < VOCAB for token_id in samples.token_ids.tolist())


def test_blocks_do_not_change_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(9)
    inits = [random_init(rng, wants=Wants(logprobs=True, top_logprobs=2)) for _ in range(20)]
    logits = torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(9))
    whole = sample(inits, logits)
    monkeypatch.setattr("sgl.engine.runtime.sampler.MAX_ELEMENTS", 3 * VOCAB)
    monkeypatch.setattr("sgl.engine.runtime.sampler._CACHED_ELEMENTS", 3 * VOCAB)
    parts = sample(inits, logits)
    assert parts.token_ids.tolist() == whole.token_ids.tolist()
    assert list(read_logprobs(parts.scores)) == list(read_logprobs(whole.scores))
