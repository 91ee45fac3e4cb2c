"""An engine driven step by step on the calling thread, and what can be watched between its loop and its executor."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from sgl.bench.engines import Timing
from sgl.engine.assembly import build_loop
from sgl.engine.base import sources
from sgl.engine.base.cost import Cost
from sgl.engine.base.device import Device, Event
from sgl.engine.base.types import (
    Add,
    Executor,
    Inbound,
    Masks,
    Outbound,
    Outputs,
    Request,
    RowOutput,
    SamplingParams,
    Shutdown,
    StepPlan,
    StepResult,
    TokenLogprob,
    Wants,
)

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
NOTHING = Wants()


@dataclass
class Answer:
    """One request's tokens with the likeliest alternatives, and when each came."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    error: str = ""
    is_done: bool = False


class Box:
    """Inbox and outbox of one batch after the other."""

    def __init__(self) -> None:
        self.waiting: list[Inbound] = []
        self.answers: dict[str, Answer] = defaultdict(Answer)

    def drain(self, timeout_s: float) -> list[Inbound]:
        messages, self.waiting = self.waiting, []
        return messages

    def send(self, message: Outbound) -> None:
        if not isinstance(message, Outputs):
            return
        now_s = time.perf_counter()
        for item in message.items:
            answer = self.answers[item.rid]
            answer.token_ids += item.token_ids
            answer.logprobs += item.logprobs
            answer.times_s += [now_s] * len(item.token_ids)
            if item.finish is not None:
                answer.is_done, answer.error = True, item.finish.message


class Station:
    """One engine, by the server's options under their names in Python."""

    def __init__(self, **options: Any) -> None:
        own = {"no_tuned": True, "skip_tokenizer_init": True}
        given = sources.with_demo_model(sources.from_call({**own, **options}))
        self.config = sources.configure(given)
        self._box = Box()
        self._loop = build_loop(self.config, self._box, self._box)
        self._count = 0

    @property
    def startup(self) -> list[tuple[str, float]]:
        """When which phase of the start ended, in seconds of `time.monotonic`."""
        return [(name, at_s) for name, at_s in self._loop.info["startup"]]

    @property
    def cost(self) -> Cost:
        cost: Cost = self._loop.info["cost"]
        return cost

    def prepare(self) -> None:
        """Captures whatever is to be captured."""
        while self._loop.rest():
            pass

    def wrap(self, wrap: Callable[[Executor], Executor]) -> None:
        self._loop.wrap_executor(wrap)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        params: SamplingParams = GREEDY,
        wants: Wants = NOTHING,
        deadline_s: float = float("inf"),
    ) -> list[Answer]:
        """Answers a batch; stops where it stands at ``deadline_s`` of `time.monotonic`."""
        params = msgspec.structs.replace(params, max_new_tokens=num_tokens)
        rids = [f"{self._count + place}" for place in range(len(prompts))]
        self._count += len(prompts)
        self._box.waiting += [
            Add(Request(rid=rid, token_ids=tuple(ids), params=params, wants=wants))
            for rid, ids in zip(rids, prompts, strict=True)
        ]
        answers = [self._box.answers[rid] for rid in rids]
        while not all(answer.is_done for answer in answers):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{sum(answer.is_done for answer in answers)} of {len(answers)} were done in time")
            self._loop.receive(0.0)
            self._loop.step()
        for answer in answers:
            if answer.error:
                raise RuntimeError(answer.error)
        return answers

    def timed(self, prompts: Sequence[Sequence[int]], num_tokens: int, deadline_s: float = float("inf")) -> Timing:
        """As `run`, for its times."""
        timing = Timing(time.perf_counter())
        timing.tokens = [answer.times_s for answer in self.run(prompts, num_tokens, deadline_s=deadline_s)]
        return timing

    def close(self) -> None:
        """Ends the engine; what it has on the device is free when nobody refers to this any more."""
        self._box.waiting.append(Shutdown())
        self._loop.run()


class Strict:
    """An executor whose steps may not wait for the device."""

    def __init__(self, executor: Executor, device: Device) -> None:
        self._executor = executor
        self._device = device
        self.num_steps = 0

    def forward(self, plan: StepPlan) -> None:
        with self._device.forbid_waits():
            self._executor.forward(plan)
        self.num_steps += 1

    def sample(self, plan: StepPlan, masks: Masks) -> StepResult:
        with self._device.forbid_waits():
            return self._executor.sample(plan, masks)

    def close(self) -> None:
        self._executor.close()


@dataclass(frozen=True)
class StepTimes:
    """Of decoding steps: seconds from one to the next, of which the device had nothing to do between them, and of
    which the host worked."""

    step_s: list[float]
    idle_s: list[float]
    host_s: list[float]


class Stopwatch:
    """An executor that notes on the device when each step began and ended there."""

    def __init__(self, executor: Executor, device: Device) -> None:
        self._executor = executor
        self._device = device
        self._begins: list[Event] = []
        self._ends: list[Event] = []
        self._called_s: list[float] = []
        self.waited_s = 0.0

    def forward(self, plan: StepPlan) -> None:
        self._called_s.append(time.perf_counter() - self.waited_s)
        self._begins.append(self._device.event(timed=True))
        self._begins[-1].record()
        self._executor.forward(plan)

    def sample(self, plan: StepPlan, masks: Masks) -> StepResult:
        result = self._executor.sample(plan, masks)
        self._ends.append(self._device.event(timed=True))
        self._ends[-1].record()
        return _Waiting(result, self)

    def close(self) -> None:
        self._executor.close()

    def times(self, skip: int) -> StepTimes:
        """Of all steps but the first ``skip`` and the last."""
        self._device.synchronize()
        begins, ends = self._begins[skip:], self._ends[skip:]
        return StepTimes(
            [one.elapsed_s(other) for one, other in pairwise(begins)],
            [end.elapsed_s(begin) for end, begin in zip(ends, begins[1:], strict=False)],
            [later - one for one, later in pairwise(self._called_s[skip:])],
        )


@dataclass(frozen=True)
class _Waiting:
    """A result that counts how long the host waits for it."""

    result: StepResult
    watch: Stopwatch

    def wait(self) -> list[RowOutput]:
        begun_s = time.perf_counter()
        outputs = self.result.wait()
        self.watch.waited_s += time.perf_counter() - begun_s
        return outputs
