"""The slot table and the batches built from it, against a model made of dicts and lists."""

import random
from dataclasses import dataclass, field

import msgspec
import pytest
import torch

from sgl.engine.base.types import PageRun, Row, RowInit, SamplingParams, StepPlan, Wants
from sgl.engine.runtime.batch import Step, StepBuilder
from sgl.engine.runtime.drafts import count_rejected
from sgl.engine.runtime.slots import SlotTable

NUM_SLOTS, MAX_LEN, PAGE, VOCAB, MAX_DRAFT = 6, 96, 4, 50, 3
CPU = torch.device("cpu")


@dataclass
class NaiveSlot:
    tokens: list[int]
    init: RowInit
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)


class NaiveTable:
    """Plays the scheduler and the device at once, on Python lists."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.slots: dict[int, NaiveSlot] = {}
        self.step_id = 0

    def plan(self) -> StepPlan:
        rng = self.rng
        finished = [
            slot
            for slot, state in self.slots.items()
            if len(state.tokens) + MAX_DRAFT + 2 > MAX_LEN or rng.random() < 0.1
        ]
        for slot in finished:
            del self.slots[slot]
        slots = rng.sample(range(NUM_SLOTS), rng.randint(1, NUM_SLOTS))
        self.step_id += 1
        return StepPlan(self.step_id, tuple(map(self._row, slots)), tuple(finished))

    def _row(self, slot: int) -> Row:
        rng = self.rng
        init = computed = None
        if slot not in self.slots:
            tokens = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 60)))
            init = RowInit(
                token_ids=tokens,
                num_prompt=rng.randint(1, len(tokens)),
                params=SamplingParams(temperature=rng.random(), top_k=rng.randint(1, 9), seed=rng.randrange(2**63)),
                wants=Wants(logprob_start=rng.choice([None, 0, 1, 5, 30])),
                eos_ids=(),
            )
            self.slots[slot] = NaiveSlot(list(tokens), init)
        state = self.slots[slot]
        known = len(state.tokens)
        if init is not None or (state.computed + 1 < known and rng.random() < 0.2):
            computed = rng.choice([None, *range(known)]) if init else rng.randrange(state.computed, known)
            state.computed = computed or 0
        num_draft = rng.randint(0, len(state.drafts)) if state.computed + 1 == known else 0
        num_tokens = rng.randint(1, known - state.computed)
        kind = "token" if state.computed + num_tokens == known else "none"
        needed = min(-(-(state.computed + num_tokens + num_draft) // PAGE) + rng.choice([0, 0, 2]), MAX_LEN // PAGE)
        start = rng.randint(0, len(state.pages)) if rng.random() < 0.2 else len(state.pages)
        fresh = tuple(rng.randrange(1000) for _ in range(max(needed, len(state.pages)) - start))
        state.pages[start:] = fresh
        return Row(
            rid=str(slot),
            slot=slot,
            num_tokens=num_tokens + num_draft,
            num_draft=num_draft,
            kind=kind,
            init=init,
            computed=computed,
            new_pages=PageRun(start, fresh) if fresh else None,
        )

    def finish(self, row: Row, sampled: list[int]) -> list[int]:
        """Takes in what was sampled for one row; returns the tokens that hold."""
        state = self.slots[row.slot]
        held = []
        for place, token_id in enumerate(sampled):
            held.append(token_id)
            if place == row.num_draft or state.drafts[place] != token_id:
                break
        state.computed += row.num_tokens - row.num_draft + max(len(held) - 1, 0)
        state.tokens += held
        return held


def check_batch(naive: NaiveTable, step: Step) -> None:
    batch, rows = step.batch, step.plan.rows
    cu_q = [0]
    ids, positions, places, sources, draw_slots, draw_positions = [], [], [], [], [], []
    for index, row in enumerate(rows):
        state = naive.slots[row.slot]
        line = state.tokens + state.drafts
        span = range(state.computed, state.computed + row.num_tokens)
        ids += [line[position] for position in span]
        positions += span
        places += [state.pages[position // PAGE] * PAGE + position % PAGE for position in span]
        cu_q.append(cu_q[-1] + row.num_tokens)
        num_pages = -(-span.stop // PAGE)
        assert batch.page_table[0][index, :num_pages].tolist() == state.pages[:num_pages]
        assert batch.seq_lens[index] == span.stop
        if row.kind == "token":
            draws = range(row.num_tokens - row.num_draft - 1, row.num_tokens)
            sources += [cu_q[-2] + draw for draw in draws]
            draw_positions += [state.computed + draw + 1 for draw in draws]
            draw_slots += [row.slot] * len(draws)
    assert (batch.input_ids.tolist(), batch.positions.tolist()) == (ids, positions)
    assert (batch.out_loc[0].tolist(), batch.cu_q.tolist()) == (places, cu_q)
    assert batch.logit_indices.tolist() == sources
    assert step.draws.slots.tolist() == list(step.draws.slot_ids) == draw_slots
    assert step.draws.positions.tolist() == draw_positions
    assert batch.q_lens == tuple(row.num_tokens for row in rows)
    assert {batch.input_ids.dtype, batch.positions.dtype, batch.out_loc[0].dtype, batch.slots.dtype} == {torch.int64}
    assert {batch.cu_q.dtype, batch.seq_lens.dtype, batch.page_table[0].dtype} == {torch.int32}


def check_prompt_spans(naive: NaiveTable, step: Step) -> None:
    spans = {span.row: span for span in step.prompt_spans}
    for index, row in enumerate(step.plan.rows):
        state = naive.slots[row.slot]
        start = state.init.wants.logprob_start
        wanted, sources = [], []
        for place in range(row.num_tokens if start is not None else 0):
            position = state.computed + place
            if position == start == 0:
                wanted.append(0)
            if start <= position + 1 < state.init.num_prompt:
                wanted.append(position + 1)
                sources.append(int(step.batch.cu_q[index]) + place)
        assert list(spans[index].positions if index in spans else ()) == wanted
        assert list(spans[index].sources if index in spans else ()) == sources


@pytest.mark.parametrize("seed", range(12))
def test_random_plans(seed: int) -> None:
    naive = NaiveTable(seed)
    table = SlotTable(NUM_SLOTS, MAX_LEN, PAGE, VOCAB, CPU)
    builder = StepBuilder(table)
    rng = naive.rng
    for _ in range(60):
        plan = naive.plan()
        step = builder.build(plan)
        check_batch(naive, step)
        check_prompt_spans(naive, step)
        sampled: list[int] = []
        expected: list[int] = []
        for row in plan.rows:
            drafts = naive.slots[row.slot].drafts[: row.num_draft]
            draws = [d if rng.random() < 0.7 else rng.randrange(VOCAB) for d in drafts] + [rng.randrange(VOCAB)]
            if row.kind == "token":
                sampled += draws
            held = naive.finish(row, draws if row.kind == "token" else [])
            expected.append(1 + row.num_draft - len(held) if row.kind == "token" else 0)
        token_ids = torch.tensor(sampled, dtype=torch.int64)
        rejected = count_rejected(step, token_ids, table)
        assert rejected.tolist() == expected
        table.append(step.draws.slots, step.draws.positions, token_ids)
        table.advance(plan, step.batch.slots, step.batch.seq_lens - rejected)
        for row in plan.rows:
            state = naive.slots[row.slot]
            state.drafts = (
                [rng.randrange(VOCAB) for _ in range(rng.randint(0, MAX_DRAFT))] if row.kind == "token" else []
            )
            known = len(state.tokens)
            table.tokens[row.slot, known : known + len(state.drafts)] = torch.tensor(state.drafts, dtype=torch.int32)
        for slot, state in naive.slots.items():
            assert table.computed[slot] == state.computed
            assert table.tokens[slot, : len(state.tokens)].tolist() == state.tokens
            assert table.pages[0][slot, : len(state.pages)].tolist() == state.pages
            params = state.init.params
            assert table.scalars["temperature"][slot] == pytest.approx(params.temperature)
            assert table.integers["top_k"][slot] == params.top_k
            assert table.integers["num_prompt"][slot] == state.init.num_prompt
        assert set(table.inits) == set(naive.slots)
        assert table.users["prompt_logprobs"] == {
            slot
            for slot, state in naive.slots.items()
            if state.init.wants.logprob_start is not None and state.computed + 1 < state.init.num_prompt
        }
        assert table.users["sampled"] == {slot for slot, state in naive.slots.items() if state.init.params.top_k != 1}


def test_what_a_finished_request_used_is_forgotten() -> None:
    params = SamplingParams(frequency_penalty=1.0, top_p=0.5, logit_bias=((1, 1.0),))
    init = RowInit(token_ids=(1, 2), num_prompt=2, params=params, wants=Wants(logprobs=True), eos_ids=())
    table = SlotTable(2, MAX_LEN, PAGE, VOCAB, CPU)
    row = Row(rid="a", slot=1, num_tokens=2, kind="token", init=init, computed=0, new_pages=PageRun(0, (3,)))
    table.apply(StepPlan(0, (row,)))
    assert {name for name, slots in table.users.items() if slots} == {
        "sampled",
        "top_p",
        "output_penalty",
        "edits",
        "logprobs",
    }
    table.apply(StepPlan(1, (), (1,)))
    assert not any(table.users.values()) and not table.inits and not table.edits
    assert table.num_pages(0, [0, 1]) == 0


def test_rows_that_come_again_are_not_laid_out_again() -> None:
    table = SlotTable(NUM_SLOTS, MAX_LEN, PAGE, VOCAB, CPU)
    builder = StepBuilder(table)

    def step(*rows: Row) -> Step:
        plan = StepPlan(0, tuple(rows))
        built = builder.build(plan)
        table.advance(plan, built.batch.slots, built.batch.seq_lens.long())
        return built

    def starts(slot: int, *pages: int) -> Row:
        wants = Wants()
        init = RowInit(token_ids=(1, 2), num_prompt=2, params=SamplingParams(), wants=wants, eos_ids=())
        run = PageRun(0, pages)
        return Row(rid="r", slot=slot, num_tokens=2, kind="token", init=init, computed=0, new_pages=run)

    again = Row(rid="r", slot=1, num_tokens=1, kind="token")
    step(starts(1, 7))
    first, second = step(again), step(again)
    assert second.batch.slots is first.batch.slots
    assert second.batch.page_table[0] is first.batch.page_table[0]
    assert [built.batch.positions.tolist() for built in (first, second)] == [[2], [3]]
    assert second.batch.out_loc[0].tolist() == [7 * PAGE + 3]
    step(starts(0, 5))  # another request: the rows differ
    assert step(again).batch.page_table[0].tolist() == [[7]]
    grown = msgspec.structs.replace(again, new_pages=PageRun(1, (9,)))
    assert step(grown).batch.page_table[0].tolist() == [[7, 9]]
    assert step(again).batch.page_table[0].tolist() == [[7, 9]]
