"""Captured steps on a device that runs everything late: the answers are those of steps that run as they are written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgl.engine.base.device import CpuDevice, Memory, detect_isa
from sgl.engine.base.errors import OutOfMemoryError
from sgl.engine.base.types import KnownMasks, PageRun, Row, RowInit, SamplingParams, StepPlan, Wants
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.nn.decoder import Model
from sgl.engine.runtime.batch import Draws
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.graphs import GraphOptions, Graphs
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.registry import bind
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.runtime.dense import DenseBackend
from tests.runtime.driver import Driver, Job
from tests.runtime.lazy import LazyDevice, WaitError

PAGE, NUM_PAGES, NUM_SLOTS, MAX_LEN, MAX_NEW = 4, 80, 4, 64, 5
OPTIONS = GraphOptions(rows=(1, 2, 4), tokens=(16, 32), min_speedup=0)
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_k=9, top_p=0.9, seed=3),
    SamplingParams(temperature=1.0, min_p=0.02, frequency_penalty=0.4, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=0.0, logit_bias=((7, 3.0),), min_new_tokens=3, stop_token_ids=(5,)),
]


class Repeater:
    """Guesses that the last token comes again; never asks the device for anything."""

    def __init__(self, num_draft: int) -> None:
        self.num_draft = num_draft

    def propose(self, table: SlotTable, draws: Draws) -> None:
        last = table.computed[draws.slots]
        tokens = table.tokens[draws.slots, last]
        for ahead in range(1, self.num_draft + 1):
            table.tokens[draws.slots, last + ahead] = tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = make_checkpoint("llama", tmp_path_factory.mktemp("llama"), tokenizer=False)
    return load(path)


def load(path: Path) -> Model:
    kernels = bind("cpu", detect_isa(), torch.float32, ("reference",))
    return load_model(path, read_config(path, {}), dtype=torch.float32, device=CpuDevice(), kernels=kernels)


def make_inits(count: int) -> list[RowInit]:
    rng = random.Random(count)
    wants = Wants(logprobs=True, top_logprobs=2)
    prompts = [tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([1, 5, 20, 33]))) for _ in range(count)]
    return [
        RowInit(token_ids=ids, num_prompt=len(ids), params=PARAMS[i % len(PARAMS)], wants=wants, eos_ids=())
        for i, ids in enumerate(prompts)
    ]


def make_executor(model: Model, device: Any, graphs: GraphOptions | None, num_draft: int = 0) -> TorchExecutor:
    options: dict[str, Any] = {"drafter": Repeater(num_draft)} if num_draft else {}
    sizes = {"num_slots": NUM_SLOTS, "max_len": MAX_LEN, "num_pages": NUM_PAGES, "page_size": PAGE}
    return TorchExecutor(model, DenseBackend(), device, graphs=graphs, **sizes, **options)


def play(executor: TorchExecutor, inits: Sequence[RowInit], num_draft: int = 0, **settings: Any) -> list[Job]:
    driver = Driver(executor, num_slots=NUM_SLOTS, num_pages=NUM_PAGES, page_size=PAGE, max_draft=num_draft, **settings)
    return driver.run(inits, MAX_NEW)


def check(jobs: Sequence[Job], expected: Sequence[Job]) -> None:
    for job, other in zip(jobs, expected, strict=True):
        assert (job.error, job.outputs) == (None, other.outputs)
        assert [entry.logprob for entry in job.logprobs] == pytest.approx(
            [entry.logprob for entry in other.logprobs], abs=1e-4
        )


EXACT = GraphOptions(rows=(1, 3), is_padded=False, min_speedup=0)
LATE = {"overlap": 1}
CHOPPED = {"max_chunk": 7, "preemption": 0.1, "overlap": 1}


@pytest.mark.parametrize(
    ("graphs", "settings", "num_draft"),
    [
        (None, LATE, 0),
        (OPTIONS, LATE, 0),
        (OPTIONS, CHOPPED, 2),
        (EXACT, LATE, 2),
    ],
    ids=["eager", "graphs", "graphs-chopped-drafts", "exact-drafts"],
)
def test_nothing_on_the_device_is_used_too_early_or_too_late(
    model: Model, graphs: GraphOptions | None, settings: dict[str, Any], num_draft: int
) -> None:
    inits = make_inits(4)
    expected = play(make_executor(model, CpuDevice(), None), inits)
    device = LazyDevice()
    with device.active():
        executor = make_executor(model, device, graphs, num_draft)
        while executor.prepare():
            pass
        check(play(executor, inits, num_draft, **settings), expected)
    if graphs is not None:
        captured = executor.loaded.runner
        assert isinstance(captured, Graphs)
        q_lens = (1, 1 + num_draft) if num_draft else (1,)
        wanted = [*((q_len, rows) for q_len in q_lens for rows in graphs.rows), *((0, size) for size in graphs.tokens)]
        assert captured.sizes == sorted(wanted)


def test_a_size_that_is_missed_often_is_captured_in_between(model: Model) -> None:
    inits = make_inits(4)
    expected = play(make_executor(model, CpuDevice(), None), inits)
    device = LazyDevice()
    with device.active():
        executor = make_executor(model, device, OPTIONS)
        check(play(executor, inits, overlap=1), expected)
        assert isinstance(executor.loaded.runner, Graphs) and executor.loaded.runner.sizes


def test_what_waits_for_the_device_is_noticed() -> None:
    device, numbers = LazyDevice(), torch.arange(3)
    with device.active():
        late = numbers + 1
        for wait in (late.sum().item, late.nonzero, late.unique, lambda: numbers[late > 1]):
            with pytest.raises(WaitError):
                wait()
        assert late.tolist() == [99, 99, 99]
        device.synchronize()
        assert late.tolist() == [1, 2, 3]


class Scarce(LazyDevice):
    """Runs out of memory at chosen moments."""

    num_left = 0

    def upload(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        self.num_left -= 1
        if self.num_left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().upload(arrays)

    def memory(self) -> Memory:
        return Memory(1 << 40, 1 << 10)


def test_without_memory_for_captures_steps_run_as_they_are(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    inits = make_inits(3)
    expected = play(make_executor(model, CpuDevice(), None), inits)
    device = Scarce()
    with device.active():
        executor = make_executor(model, device, OPTIONS)
        while executor.prepare():
            pass
        check(play(executor, inits), expected)
    assert isinstance(executor.loaded.runner, Graphs) and executor.loaded.runner.sizes == []
    assert "'CUDA graphs'; lower --cuda-graph-max-bs or --mem-fraction-static" in caplog.text


def test_a_step_without_memory_says_which_line_and_which_flags(model: Model) -> None:
    (init,) = make_inits(1)
    device = Scarce()
    row = Row(rid="", slot=0, num_tokens=1, kind="token", init=init, computed=0, new_pages=PageRun(0, (0,)))
    with device.active():
        executor = make_executor(model, device, None)
        device.num_left = 1
        plan = StepPlan(0, (row,))
        with pytest.raises(OutOfMemoryError, match=r"line 'activations': 1.0 KiB of .* --chunked-prefill-size"):
            executor.forward(plan)
        executor.forward(plan)
        assert device.num_trims == 1
        assert executor.sample(plan, KnownMasks()) is not None


def test_the_first_steps_are_nobodys(model: Model) -> None:
    inits = make_inits(3)
    expected = play(make_executor(model, CpuDevice(), None), inits)
    device = LazyDevice()
    with device.active():
        executor = make_executor(model, device, OPTIONS)
        executor.warm_up()
        assert not executor._table.inits and not any(executor._table.users.values())
        check(play(executor, inits), expected)
