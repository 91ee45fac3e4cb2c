import random
from typing import Any

import msgspec
import pytest
import torch

from sgl.engine.base.device import open_device
from sgl.engine.base.types import KnownMasks, PageRun, Row, RowInit, SamplingParams, StepPlan, TokenLogprob, Wants
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.kv import kv_bytes_per_page
from tests.runtime.driver import Driver, OracleDrafter
from tests.runtime.tiny import MAX_LEN, VOCAB_SIZE, NoBackend, TinyModel

PAGE, NUM_PAGES, NUM_SLOTS, MAX_NEW = 4, 96, 4, 12
GREEDY = SamplingParams(temperature=0.0)

SETTINGS = [
    {},
    {"overlap": 1},
    {"max_chunk": 1},
    {"max_chunk": 5, "overlap": 1},
    {"preemption": 0.15, "max_chunk": 7},
    {"preemption": 0.15, "max_chunk": 3, "overlap": 1},
]


def make_executor(model: TinyModel, **options: Any) -> TorchExecutor:
    return TorchExecutor(
        model,
        NoBackend(),  # type: ignore[arg-type]
        open_device("cpu"),
        num_slots=NUM_SLOTS,
        max_len=MAX_LEN,
        num_pages=NUM_PAGES,
        page_size=PAGE,
        **options,
    )


def make_inits(count: int, params: list[SamplingParams], wants: Wants) -> list[RowInit]:
    rng = random.Random(count)
    inits = []
    for index in range(count):
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 40)))
        one = params[index % len(params)]
        inits.append(RowInit(token_ids=prompt, num_prompt=len(prompt), params=one, wants=wants, eos_ids=()))
    return inits


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_greedy_tokens_are_those_without_cache_and_batch(settings: dict[str, Any]) -> None:
    model = TinyModel()
    inits = make_inits(9, [GREEDY], Wants())
    jobs = Driver(make_executor(model), page_size=PAGE, num_pages=NUM_PAGES, **settings).run(inits, MAX_NEW)
    for job in jobs:
        assert job.error is None
        assert job.tokens == model.greedy(job.init.token_ids, MAX_NEW)


MIXED = [
    SamplingParams(seed=1),
    SamplingParams(temperature=0.7, top_k=9, top_p=0.8, seed=2**40),
    GREEDY,
    SamplingParams(temperature=1.4, min_p=0.05, seed=3, frequency_penalty=0.6, presence_penalty=0.3),
    SamplingParams(temperature=0.9, repetition_penalty=1.3, min_new_tokens=4, stop_token_ids=(3, 4), seed=4),
    SamplingParams(logit_bias=((7, 3.0), (8, -9.0)), top_p=0.9, seed=5),
]


@pytest.mark.parametrize("num_draft", [0, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_request_gets_the_same_answer_however_it_is_run(settings: dict[str, Any], num_draft: int) -> None:
    model = TinyModel(1)
    wants = Wants(logprobs=True, top_logprobs=2, token_logprob_ids=(5,), logprob_start=0, hidden=True)
    inits = make_inits(9, MIXED, wants)
    alone = [Driver(make_executor(model), page_size=PAGE).run([init], MAX_NEW)[0] for init in inits]
    drafter = OracleDrafter({job.init.token_ids: job.tokens for job in alone}, num_draft, hit_rate=0.7)
    driver = Driver(
        make_executor(model, drafter=drafter), page_size=PAGE, num_pages=NUM_PAGES, max_draft=num_draft, **settings
    )
    jobs = driver.run(inits, MAX_NEW)
    for job, reference in zip(jobs, alone, strict=True):
        assert (job.error, job.outputs) == (None, reference.outputs)
        assert flat(job.logprobs) == pytest.approx(flat(reference.logprobs), abs=1e-5)
        assert flat(job.prompt_logprobs) == pytest.approx(flat(reference.prompt_logprobs), abs=1e-5)
        assert len(job.hidden) == len(job.tokens) - 1
        assert numbers(job.hidden) == pytest.approx(numbers(reference.hidden), abs=1e-5)


def numbers(rows: list[bytes]) -> list[float]:
    return memoryview(b"".join(rows)).cast("f").tolist()


def flat(entries: list[TokenLogprob]) -> list[float]:
    return [
        number
        for entry in entries
        for number in (entry.token_id, entry.logprob or 0.0, *(x for pair in entry.top + entry.chosen for x in pair))
    ]


def test_right_drafts_save_steps() -> None:
    model = TinyModel()
    (init,) = make_inits(1, [GREEDY], Wants())
    answer = model.greedy(init.token_ids, MAX_NEW)
    steps = []
    for hit_rate in (1.0, 0.0):
        drafter = OracleDrafter({init.token_ids: answer}, 3, hit_rate)
        driver = Driver(make_executor(model, drafter=drafter), page_size=PAGE, max_draft=3)
        driver.rng.randint = lambda low, high: high  # type: ignore[method-assign]
        assert driver.run([init], MAX_NEW)[0].tokens == answer
        steps.append(driver.num_steps)
    assert steps == [1 + -(-(MAX_NEW - 1) // 4), MAX_NEW]


@pytest.mark.parametrize("start", [0, 1, 7, 39])
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_prompt_logprobs(start: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.runtime.logprobs.MAX_ELEMENTS", block * VOCAB_SIZE)
    model = TinyModel()
    prompt = tuple(random.Random(start).randrange(VOCAB_SIZE) for _ in range(40))
    wants = Wants(logprob_start=start, top_logprobs=3, token_logprob_ids=(0, 60))
    init = RowInit(token_ids=prompt, num_prompt=40, params=GREEDY, wants=wants, eos_ids=())
    for max_chunk in (1, 9, 100):
        model.num_logits = 0
        (job,) = Driver(make_executor(model), page_size=PAGE, max_chunk=max_chunk).run([init], 1)
        assert model.num_logits == 40 - max(start, 1) + 1  # one per wanted position, one to sample from
        exact = model.all_logits(prompt).double().log_softmax(-1)
        assert [entry.token_id for entry in job.prompt_logprobs] == list(prompt[start:])
        for position, entry in enumerate(job.prompt_logprobs, start):
            if position == 0:
                assert entry == TokenLogprob(prompt[0], None)
                continue
            line = exact[position - 1]
            assert entry.logprob == pytest.approx(float(line[prompt[position]]), abs=1e-5)
            assert [token_id for token_id, _ in entry.top] == line.topk(3).indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(line.topk(3).values.tolist(), abs=1e-5)
            assert [value for _, value in entry.chosen] == pytest.approx(line[[0, 60]].tolist(), abs=1e-5)


def test_logits_are_computed_only_where_a_token_is_chosen() -> None:
    model = TinyModel()
    inits = make_inits(3, [GREEDY], Wants())
    Driver(make_executor(model), page_size=PAGE, max_chunk=8).run(inits, MAX_NEW)
    assert model.num_logits == 3 * MAX_NEW


def test_rows_share_pages_that_one_of_them_writes_in_the_same_step() -> None:
    model = TinyModel()
    prompt = tuple(range(10))
    init = RowInit(token_ids=prompt, num_prompt=10, params=GREEDY, wants=Wants(), eos_ids=())
    executor = make_executor(model)
    first = Row(rid="a", slot=2, num_tokens=10, kind="token", init=init, computed=0, new_pages=PageRun(0, (9, 4, 7)))
    second = Row(rid="b", slot=0, num_tokens=2, kind="token", init=init, computed=8, new_pages=PageRun(0, (9, 4, 1)))
    plan = StepPlan(0, (second, first))
    executor.forward(plan)
    outputs = executor.sample(plan, KnownMasks()).wait()
    assert outputs[0].token_ids == outputs[1].token_ids == model.greedy(prompt, 1)[10:]


def test_masks_belong_to_rows_of_the_plan() -> None:
    inits = make_inits(2, [GREEDY], Wants())
    executor = make_executor(TinyModel())
    rows = [
        Row(rid="a", slot=3, num_tokens=1, init=inits[0], computed=0, new_pages=PageRun(0, (1,))),
        Row(
            rid="b",
            slot=1,
            num_tokens=len(inits[1].token_ids),
            kind="token",
            init=inits[1],
            computed=0,
            new_pages=PageRun(0, tuple(range(2, 12))),
        ),
    ]
    plan = StepPlan(0, tuple(rows))
    executor.forward(plan)
    outputs = executor.sample(plan, KnownMasks({1: bytes([0, 0b100, 0, 0, 0, 0, 0, 0])})).wait()
    assert [output.token_ids for output in outputs] == [[], [10]]


def test_a_request_with_broken_logits_does_not_disturb_the_others() -> None:
    model = TinyModel()
    inits = make_inits(3, [GREEDY, SamplingParams(seed=4)], Wants())
    model.embedding = model.embedding.clone()
    poisoned = next(
        t
        for t in inits[1].token_ids
        if all(t not in inits[i].token_ids + tuple(model.greedy(inits[i].token_ids, 5)) for i in (0, 2))
    )
    clean = [Driver(make_executor(model), page_size=PAGE).run([init], 5)[0].tokens for init in inits]
    model.embedding[poisoned] = float("nan")
    jobs = Driver(make_executor(model), page_size=PAGE).run(inits, 5)
    assert [job.error is None for job in jobs] == [True, False, True]
    assert "not finite" in str(jobs[1].error)
    assert [jobs[0].tokens, jobs[2].tokens] == [clean[0], clean[2]]


def test_a_mask_that_allows_nothing_is_an_error_of_its_row() -> None:
    inits = make_inits(1, [GREEDY], Wants())
    executor = make_executor(TinyModel())
    row = Row(
        rid="a",
        slot=0,
        num_tokens=len(inits[0].token_ids),
        kind="token",
        init=inits[0],
        new_pages=PageRun(0, tuple(range(12))),
    )
    plan = StepPlan(0, (row,))
    executor.forward(plan)
    (output,) = executor.sample(plan, KnownMasks({0: bytes(8)})).wait()
    assert "no token" in str(output.error)


def test_bytes_per_page_are_those_of_the_allocated_tensors() -> None:
    model = TinyModel()
    layers = make_executor(model).loaded._kv
    size = sum(cache.numel() * cache.element_size() for layer in layers for cache in (layer.k, layer.v))
    assert kv_bytes_per_page(model.kv_specs, PAGE) * NUM_PAGES == size
    assert not any(cache.any() for layer in layers for cache in (layer.k, layer.v))


def test_plans_survive_a_round_trip_through_msgpack() -> None:
    """What a worker of another rank gets is what the scheduler planned."""
    model = TinyModel()
    (init,) = make_inits(1, MIXED[3:], Wants(logprobs=True))
    row = Row(
        rid="a",
        slot=1,
        num_tokens=len(init.token_ids),
        kind="token",
        init=init,
        computed=0,
        new_pages=PageRun(0, tuple(range(11))),
    )
    results = []
    for plan in (
        StepPlan(0, (row,)),
        msgspec.msgpack.decode(msgspec.msgpack.encode(StepPlan(0, (row,))), type=StepPlan),
    ):
        executor = make_executor(model)
        executor.forward(plan)
        results.append(executor.sample(plan, KnownMasks()).wait())
        executor.close()
    assert results[0] == results[1]
    assert torch.is_inference_mode_enabled() is False
