"""An executor without a model: tokens are a hash of all previous ones, time is virtual.

It keeps the per-slot state and the "KV" a device would keep, page by page, so a scheduler that hands out a wrong page,
a stale page or too few of them makes it answer wrongly. It never imports torch and never looks into the scheduler.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass, field

from sgl.engine.base.ledger import StepTime
from sgl.engine.base.types import HostDraws, Masks, Row, RowInit, RowOutput, StepPlan


@dataclass(frozen=True)
class SimModel:
    """The pure function that stands in for a model, and what its steps cost in seconds."""

    vocab_size: int = 97
    seed: int = 0
    draft_hit_rate: float = 0.7
    step_s: float = 1e-3
    token_s: float = 1e-5

    @property
    def time(self) -> StepTime:
        return StepTime(self.step_s, self.token_s)

    def absorb(self, state: int, token_id: int) -> int:
        """The state after one more token; the empty prefix has state ``seed``."""
        return (state * 6364136223846793005 + token_id * 1442695040888963407 + 1) & 0xFFFFFFFFFFFF

    def next_token(self, state: int, mask: bytes | None = None) -> int:
        """The token that follows ``state``: the first allowed one from a hashed place on."""
        first = (state >> 16) % self.vocab_size
        if mask is None:
            return first
        for offset in range(self.vocab_size):
            token_id = (first + offset) % self.vocab_size
            if mask[token_id >> 3] >> (token_id & 7) & 1:
                return token_id
        raise ValueError("the grammar allows no token")


@dataclass
class SimClock:
    """Virtual seconds; advanced by the executor, read by whoever needs the time."""

    now_s: float = 0.0


@dataclass
class _Slot:
    """What a device keeps per slot."""

    tokens: list[int]
    init: RowInit
    computed: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    drafts: list[int] = field(default_factory=list)


class SimResult:
    """A result that is ready when it is asked for."""

    def __init__(self, outputs: list[RowOutput]) -> None:
        self._outputs = outputs

    def wait(self) -> list[RowOutput]:
        return self._outputs


class SimExecutor:
    """Executes plans against a `SimModel`; drafts are right with probability ``draft_hit_rate``."""

    def __init__(self, model: SimModel, page_size: int, max_draft: int = 0, clock: SimClock | None = None) -> None:
        self.model = model
        self.clock = clock or SimClock()
        self._page_size = page_size
        self._max_draft = max_draft
        self._rng = random.Random(model.seed)
        self._slots: dict[int, _Slot] = {}
        self._kv: dict[tuple[int, int], int] = {}  # (page, offset) -> state of the prefix that ends there
        self._states: list[list[int]] = []  # per row of the current plan: the states after its positions

    def forward(self, plan: StepPlan) -> None:
        for slot in plan.finished_slots:
            self._slots.pop(slot, None)
        for row in plan.rows:
            self._apply(row)
        self._states = [self._compute(row) for row in plan.rows]
        self.clock.now_s += self.model.time.seconds(plan.num_tokens)

    def sample(self, plan: StepPlan, masks: Masks) -> SimResult:
        return SimResult(
            [
                self._sample(row, states, self._mask(index, states[-1], masks))
                for index, (row, states) in enumerate(zip(plan.rows, self._states, strict=True))
            ]
        )

    def close(self) -> None:
        self._slots.clear()

    def _apply(self, row: Row) -> None:
        if row.init is not None:
            self._slots[row.slot] = _Slot(list(row.init.token_ids), row.init)
        slot = self._slots[row.slot]
        if row.new_tokens is not None:
            slot.tokens[row.new_tokens.start :] = row.new_tokens.token_ids
        if row.computed is not None:
            slot.computed = row.computed
        if row.new_pages is not None:
            slot.pages.update(enumerate(row.new_pages.pages, start=row.new_pages.start))

    def _compute(self, row: Row) -> list[int]:
        """Absorbs the row's positions; the state before each is read back from the paged KV."""
        slot = self._slots[row.slot]
        if row.num_draft:
            del slot.tokens[slot.computed + 1 :]
            slot.tokens += slot.drafts[: row.num_draft]
        states = []
        for position in range(slot.computed, slot.computed + row.num_tokens):
            before = self._kv[self._place(slot, position - 1)] if position else self.model.seed
            state = self.model.absorb(before, slot.tokens[position])
            self._kv[self._place(slot, position)] = state
            states.append(state)
        return states

    def _place(self, slot: _Slot, position: int) -> tuple[int, int]:
        page, offset = divmod(position, self._page_size)
        return slot.pages[page], offset

    def _mask(self, index: int, state: int, masks: Masks) -> bytes | None:
        """What the row's token is chosen from; None for all."""
        if index not in masks.rows:
            return None
        draws = HostDraws((ctypes.c_int64 * 1)(self.model.next_token(state)), (0,))
        masks.settle([index], draws)
        (token_id,) = draws.token_ids
        if token_id >= 0:
            return (1 << token_id).to_bytes(self.model.vocab_size, "little")
        return masks.read([index])[0] or None  # anything, where there is none

    def _sample(self, row: Row, states: list[int], mask: bytes | None) -> RowOutput:
        slot = self._slots[row.slot]
        if row.kind == "none":
            slot.computed += row.num_tokens
            return RowOutput()
        verified = states[len(states) - 1 - row.num_draft :]
        tokens: list[int] = []
        for place, state in enumerate(verified):
            token_id = self.model.next_token(state, mask)
            tokens.append(token_id)
            if (
                place == row.num_draft
                or slot.tokens[slot.computed + row.num_tokens - row.num_draft + place] != token_id
            ):
                break
        slot.computed += row.num_tokens - row.num_draft + len(tokens) - 1
        del slot.tokens[slot.computed - len(tokens) + 1 :]
        slot.tokens += tokens
        slot.drafts = self._propose(verified[len(tokens) - 1], tokens[-1])
        return RowOutput(token_ids=tokens)

    def _propose(self, state: int, token_id: int) -> list[int]:
        """Guesses what follows ``token_id`` by running the model ahead and spoiling some of it."""
        drafts = []
        for _ in range(self._max_draft):
            state = self.model.absorb(state, token_id)
            token_id = self.model.next_token(state)
            if self._rng.random() > self.model.draft_hit_rate:
                token_id = (token_id + 1) % self.model.vocab_size
            drafts.append(token_id)
        return drafts
