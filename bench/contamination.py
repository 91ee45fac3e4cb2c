"""Finds out that something else was measured than was meant; such a run is refused, not reported. Measures nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sgl.bench.data import Sample, num_shared
from sgl.bench.figures import Outcome, num_cached
from sgl.engine.base.cost import Cost
from sgl.engine.base.errors import ConfigError, SglError

CacheState = Literal["cold", "warm", "any"]
"""Of the prefix cache when a run begins: emptied, filled with the prompts themselves, or not looked after."""

JUMP_S, JUMP_SHARE = 0.1, 0.001
"""How far the wall clock and the monotonic clock may part: adjustments are slower than that, jumps and sleep faster."""

WARM_SHARE = 0.5
"""Of the tokens that it was filled with. A cache of whole pages never finds the end of a prompt."""


class ContaminatedError(SglError):
    """The figures are not those of what was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="contaminated")


@dataclass(frozen=True)
class Clocks:
    """Both clocks at one time, in seconds."""

    wall_s: float
    monotonic_s: float

    @staticmethod
    def now() -> Clocks:
        """Both, read again if this process had to wait between them: that would look like a jump."""
        while True:
            before_s, wall_s, after_s = time.monotonic(), time.time(), time.monotonic()
            if after_s - before_s < JUMP_S / 10:
                return Clocks(wall_s, after_s)

    def check(self, later: Clocks) -> None:
        """
        Raises:
            ContaminatedError: one of them jumped meanwhile, or the machine slept.
        """
        elapsed_s = later.monotonic_s - self.monotonic_s
        jump_s = later.wall_s - self.wall_s - elapsed_s
        if abs(jump_s) > JUMP_S + JUMP_SHARE * elapsed_s:
            raise ContaminatedError(f"The clock jumped by {jump_s:+.2f} s during the run; nothing is reported.")


@dataclass(frozen=True)
class Facts:
    """What a server says of itself. None: it does not say.

    Args:
        model: everything that names what it serves, by key.
        num_active: requests under way.
        num_requests: requests taken since its start.
        cost: of its model.
        cores: threads that it computes with.
        chunk: prompt tokens that it computes at once.
    """

    model: dict[str, str]
    num_active: int | None = None
    num_requests: int | None = None
    cost: Cost = field(default_factory=Cost)
    cores: int | None = None
    chunk: int | None = None

    def check(self, later: Facts, num_sent: int) -> None:
        """
        Raises:
            ContaminatedError: another model, a restart, or more requests than the ``num_sent`` of the run.
        """
        for key, value in self.model.items():
            if later.model.get(key) != value:
                changed = f"{key} was {value} and is {later.model.get(key) or 'not told'}"
                raise ContaminatedError(f"The model changed during the run ({changed}); nothing is reported.")
        if self.num_requests is None or later.num_requests is None:
            return
        num_taken = later.num_requests - self.num_requests
        if num_taken < 0:
            raise ContaminatedError("The server was started again during the run; nothing is reported.")
        if num_taken > num_sent:
            others = f"it took {num_taken} requests, {num_sent} of them ours"
            raise ContaminatedError(f"The server worked for others during the run ({others}); nothing is reported.")


def check_state(state: str) -> None:
    """
    Raises:
        ConfigError: not a `CacheState`.
    """
    known = get_args(CacheState)
    if state not in known:
        raise ConfigError(f"--cache-state {state} is unknown; use {', '.join(known)}.", param="--cache-state")


def check_cache(state: str, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> str:
    """Holds the cached tokens of a run against the declared state; a note if they are not known.

    Raises:
        ContaminatedError: the cache was in another state.
    """
    done = [outcome for outcome in outcomes if not outcome.error]
    cached = num_cached(done)
    if state == "any" or not done:
        return ""
    if cached is None:
        return f"The server does not say how many tokens were cached, so --cache-state {state} was not checked."
    # What a server puts around every prompt, such as a chat template, is alike and may be found too.
    around = max(0, sum(outcome.input_len for outcome in done) - sum(_num_asked(sample) for sample in samples))
    shared = num_shared(samples) + around
    if state == "cold" and cached > shared:
        told = f"{cached} prompt tokens were cached, and the prompts have {shared} in common"
        raise ContaminatedError(f"The prefix cache was not cold ({told}); nothing is reported.")
    filled = sum(len(sample.input_ids) for sample in samples)
    if state == "warm" and cached < WARM_SHARE * filled:
        told = f"{cached} prompt tokens were cached of the {filled} that it was filled with"
        raise ContaminatedError(f"The prefix cache was not warm ({told}); nothing is reported.")
    return ""


def _num_asked(sample: Sample) -> int:
    """Prompt tokens of a whole conversation."""
    num_said, num_asked = 0, 0
    for turn in (sample, *sample.later):
        num_asked += num_said + len(turn.input_ids)
        num_said += len(turn.input_ids) + turn.output_len
    return num_asked
