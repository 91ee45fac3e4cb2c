"""The shipped logit processors against their definitions in plain Python, and what the sampler makes of broken ones."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sgl.engine.base.errors import SglError
from sgl.engine.base.processors import (
    CONTEXT,
    CustomLogitProcessor,
    LogitContext,
    find_processor,
    known_processors,
    make_processor,
    read_processor,
)
from sgl.engine.base.types import Processor, RowInit, SamplingParams, Wants
from sgl.engine.runtime import processors as shipped
from sgl.engine.runtime.executor import TorchExecutor
from tests.runtime.driver import Driver
from tests.runtime.test_executor import PAGE, make_executor
from tests.runtime.tiny import VOCAB_SIZE, TinyModel

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 12
STOPS = (3, 7)
Naive = Callable[[list[float], Sequence[int], int], list[float]]
"""(logits, tokens, length of the prompt) -> logits."""


def keep(logits: list[float], allowed: Callable[[int], bool]) -> list[float]:
    return [value if allowed(i) else -math.inf for i, value in enumerate(logits)]


def ban_tokens(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
    return keep(logits, lambda i: i not in (2, 5))


def only_tokens(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
    return keep(logits, lambda i: i in (1, 3, 4))


def force_tokens(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
    done = len(tokens) - num_prompt
    return logits if done >= 3 else keep(logits, lambda i: i == (4, 0, 4)[done])


def min_length(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
    return logits if len(tokens) - num_prompt >= 4 else keep(logits, lambda i: i not in STOPS)


def no_repeat(size: int, window: int | None) -> Naive:
    def naive(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
        seen = list(tokens if window is None else tokens[-window:])
        grams = {tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)}
        suffix = tuple(tokens[len(tokens) - size + 1 :]) if size > 1 else ()
        if len(tokens) < size:
            return logits
        return keep(logits, lambda i: (*suffix, i) not in grams)

    return naive


def temperature_schedule(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
    share = min((len(tokens) - num_prompt) / 5, 1.0)
    return [value / (2.0 + (0.5 - 2.0) * share) for value in logits]


def thinking(budget: int, start: int | None) -> Naive:
    def naive(logits: list[float], tokens: Sequence[int], num_prompt: int) -> list[float]:
        places = [i for i, token in enumerate(tokens) if token == start] if start is not None else [num_prompt - 1]
        if not places or 9 in tokens[places[-1] + 1 :]:
            return logits
        return logits if len(tokens) - places[-1] - 1 < budget else keep(logits, lambda i: i == 9)

    return naive


CASES: list[tuple[CustomLogitProcessor, Naive]] = [
    (shipped.BanTokens(token_ids=[2, 5]), ban_tokens),
    (shipped.OnlyTokens(token_ids=[1, 3, 4]), only_tokens),
    (shipped.ForceTokens(token_ids=[4, 0, 4]), force_tokens),
    (shipped.MinLength(length=4), min_length),
    (shipped.NoRepeatNgram(size=1), no_repeat(1, None)),
    (shipped.NoRepeatNgram(size=2), no_repeat(2, None)),
    (shipped.NoRepeatNgram(size=3, window=9), no_repeat(3, 9)),
    (shipped.TemperatureSchedule(start=2.0, end=0.5, steps=5), temperature_schedule),
    (shipped.ThinkingBudget(budget=4, end_id=9, start_id=8), thinking(4, 8)),
    (shipped.ThinkingBudget(budget=2, end_id=9), thinking(2, None)),
    (shipped.ThinkingBudget(budget=0, end_id=9), thinking(0, None)),
]


@pytest.mark.parametrize(("processor", "naive"), CASES, ids=[repr(processor) for processor, _ in CASES])
def test_shipped_processors_do_what_they_are_defined_to_do(processor: CustomLogitProcessor, naive: Naive) -> None:
    rng = random.Random(1)
    run = make_processor(read_processor(processor.to_str(), None))
    for _ in range(300):
        num_prompt = rng.randint(1, 8)
        tokens = [rng.randrange(rng.choice([3, VOCAB])) for _ in range(num_prompt + rng.randint(0, 10))]
        room = tokens + [rng.randrange(1 << 20) for _ in range(6)]  # behind the known ones there may be anything
        context = LogitContext(torch.tensor(room, dtype=torch.int32), torch.tensor(len(tokens)), num_prompt, STOPS)
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(rng.randrange(1000)))
        expected = torch.tensor([naive(logits[0].tolist(), tokens, num_prompt)])
        torch.testing.assert_close(run(logits.clone(), context), expected, msg=f"{tokens} {num_prompt}")


class Refusing(TorchDispatchMode):
    """Raises an error where numbers of the host become a tensor: a GPU copies them while the host waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket is not torch.ops.aten.lift_fresh or args[0].dim() == 0, "a list as a tensor"
        return func(*args, **(kwargs or {}))


def uploaded(ids: Sequence[int]) -> torch.Tensor:
    with _disable_current_modes():
        return torch.tensor(ids, dtype=torch.int64)


@pytest.mark.parametrize("processor", [processor for processor, _ in CASES], ids=repr)
def test_shipped_processors_wait_for_nothing(processor: CustomLogitProcessor) -> None:
    tokens, position = torch.tensor([3, 8, 3, 8, 3, 8, 9, 3], dtype=torch.int32), torch.tensor(6)
    run, logits = make_processor(read_processor(processor.to_str(), None)), torch.zeros(1, VOCAB)
    with pytest.raises(AssertionError, match="a list"), Refusing():
        logits[:, [1, 2]] = 1.0
    with Refusing():
        run(logits, LogitContext(tokens, position, 2, STOPS, uploaded))


def test_every_shipped_processor_is_tested() -> None:
    names = {type(processor).name for processor, _ in CASES}
    assert names == {
        cls.name for cls in vars(shipped).values() if isinstance(cls, type) and cls.__module__ == shipped.__name__
    }
    assert names <= set(known_processors())


def test_a_name_and_parameters_are_all_that_travels() -> None:
    text = shipped.ThinkingBudget(budget=3, end_id=9).to_str()
    assert msgspec.json.decode(text) == {
        "name": "thinking_budget",
        "params": {"budget": 3, "end_id": 9, "start_id": None},
    }
    call = read_processor(text, {"budget": 5})
    assert find_processor(call) == shipped.ThinkingBudget(budget=5, end_id=9)


@pytest.mark.parametrize(
    ("text", "custom", "message"),
    [
        ("80049563", None, "code is not accepted"),
        ('{"callable": "8004"}', None, "code is not accepted"),
        ("[" * 5000, None, "code is not accepted"),
        ("x" * 70_000, None, "at most 65536 characters"),
        ('{"name": "nix"}', None, "no processor 'nix' here; there are: "),
        ('{"name": "ban_tokens"}', None, "missing required field `token_ids`"),
        ('{"name": "ban_tokens", "params": {"token_ids": []}}', None, "length >= 1"),
        ('{"name": "ban_tokens", "params": {"token_ids": [1]}}', {"more": 1}, "unknown field `more`"),
        ('{"name": "min_length", "params": {"length": 0}}', None, ">= 1"),
        ('{"name": "temperature_schedule", "params": {"start": -1, "end": 1, "steps": 2}}', None, "> 0"),
        ('{"name": "min_length", "params": {"length": 1}}', {"length": "x" * 70_000}, "at most 65536 bytes"),
    ],
)
def test_what_is_no_processor_is_refused(text: str, custom: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(SglError) as caught:
        find_processor(read_processor(text, custom))
    assert message in caught.value.message and caught.value.status == 400
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("processor", [processor for processor, _ in CASES[:3] + CASES[8:10]], ids=repr)
def test_tokens_outside_the_vocabulary_are_refused(processor: CustomLogitProcessor) -> None:
    processor.check(VOCAB)
    with pytest.raises(SglError, match="outside the vocabulary of 2 tokens"):
        processor.check(2)


class Sometimes(CustomLogitProcessor):
    """Breaks down at its third token."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Any) -> torch.Tensor:
        [params] = custom_param_list
        context = params[CONTEXT]
        if int(context.position) - context.num_prompt == params["when"]:
            raise ValueError("out of luck")
        return logits


class Deterministic(CustomLogitProcessor):
    """The one of SGLang's documentation."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Any) -> torch.Tensor:
        assert logits.shape[0] == len(custom_param_list)
        for i, params in enumerate(custom_param_list):
            logits[i, :] = -float("inf")
            logits[i, params["token_id"]] = 0.0
        return logits


def init(seed: int, processor: Processor | None) -> RowInit:
    prompt = tuple(random.Random(seed).randrange(VOCAB_SIZE) for _ in range(5 + seed))
    params = SamplingParams(temperature=0.0, processor=processor)
    return RowInit(token_ids=prompt, num_prompt=len(prompt), params=params, wants=Wants(), eos_ids=())


def test_a_processor_changes_its_own_request_and_a_broken_one_ends_it() -> None:
    model = TinyModel()
    executor: TorchExecutor = make_executor(model)
    broken = read_processor(Sometimes().to_str(), {"when": 2})
    fixed = read_processor(Deterministic().to_str(), {"token_id": 11})
    inits = [init(0, None), init(1, broken), init(2, fixed), init(3, None)]
    jobs = Driver(executor, page_size=PAGE).run(inits, 6)
    for job in (jobs[0], jobs[3]):
        assert job.tokens == model.greedy(job.init.token_ids, 6)
    assert jobs[1].error is not None and "'Sometimes' failed: ValueError('out of luck')" in jobs[1].error
    assert jobs[1].tokens[: inits[1].num_prompt + 2] == model.greedy(inits[1].token_ids, 2)
    assert jobs[2].outputs == [11] * 6


def test_processors_of_installed_packages_are_found_and_broken_ones_only_logged(tmp_path: Path) -> None:
    info = tmp_path / "nudge-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nudge\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sgl.logit_processors]\nnudge = nudge:Nudge\ngone = nowhere:Gone\n")
    (tmp_path / "nudge.py").write_text(
        "from sgl.engine.base.processors import CustomLogitProcessor\n"
        "class Nudge(CustomLogitProcessor, frozen=True):\n"
        "    name = 'nudge'\n"
        "    by: float = 1.0\n"
    )
    code = (
        "from sgl.engine.base.processors import find_processor, known_processors, read_processor as read; import sys; "
        'print("nudge" in known_processors(), find_processor(read(\'{"name": "nudge", "params": {"by": 2}}\', None)), '
        '"torch" in sys.modules)'
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "True Nudge(by=2.0) False", run.stderr
    assert "nowhere:Gone cannot be loaded" in run.stderr
