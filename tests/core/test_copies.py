"""A prompt that several requests of one moment share is computed once, but for the last page of each."""

from __future__ import annotations

import random
from collections import Counter

from sgl.engine.base.types import KnownMasks, Request, SamplingParams
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel


def computed(seed: int) -> tuple[Counter[str], int, int]:
    """Tokens computed for each of some copies of a prompt, the prompt's length and the page size."""
    rng = random.Random(seed)
    page_size, length = rng.choice([1, 4, 16]), rng.randint(1, 200)
    budget, policy = rng.choice([8, 16, 32, 64, 512]), rng.choice(["lpm", "fcfs"])
    config = SchedulerConfig(6400 // page_size, page_size, 8, budget, 100, 400, policy=policy)
    scheduler, executor = Scheduler(config, NoGrammars()), SimExecutor(SimModel(), page_size)
    prompt = tuple((place * 7 + seed) % 97 for place in range(length))
    for number in range(rng.randint(2, 6)):
        scheduler.add(Request(rid=str(number), token_ids=prompt, params=SamplingParams(max_new_tokens=1)), 0.0)
    counts: Counter[str] = Counter()
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        counts.update({row.rid: row.num_tokens for row in plan.rows})
        executor.forward(plan)
        scheduler.update(executor.sample(plan, KnownMasks()).wait())
    return counts, length, page_size


def test_copies_compute_a_page_each_at_most() -> None:
    for seed in range(300):
        counts, length, page_size = computed(seed)
        assert counts.total() <= length + (len(counts) - 1) * page_size, f"seed {seed}"
