"""Per-slot state on the device: tokens, computed counts, pages and sampling rows. It decides and computes nothing.

Only two things change it, in the order in which steps run: applying a plan, and recording what a step sampled. The host
keeps no count that a result could change; it knows of a slot what the plans said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sgl.engine.base.processors import LogitProcessor, make_processor
from sgl.engine.base.types import Row, RowInit, SamplingParams, StepPlan
from sgl.kernels.ops.decode import Commit, Locate, Located, commit, locate
from sgl.kernels.ops.random import stream_of

Feature = Literal[
    "sampled",  # neither greedy nor equivalent to it
    "top_k",
    "top_p",
    "min_p",
    "output_penalty",  # frequency or presence
    "repetition",
    "edits",
    "processor",
    "logprobs",
    "prompt_logprobs",
    "embeds",
    "hidden",
]
Scalar = Literal["temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"]
Integer = Literal["top_k", "num_prompt", "stream"]

GREEDY_TEMPERATURE = 1e-6
"""At and below this temperature the most likely token is taken."""

_ALWAYS = 1 << 62

_UNKNOWN = -(1 << 40)
"""A computed count that only the device knows; what is added to it meanwhile leaves it negative."""

Send = Callable[[Sequence[np.ndarray]], list[Tensor]]
"""The values of arrays on the device, all in one copy."""


@dataclass(frozen=True)
class LogitEdits:
    """What is added to single logits of a slot: logit_bias, and -inf to stop tokens that must not come yet."""

    ids: Tensor  # int64 [N]
    values: Tensor  # float32 [N]
    until: Tensor  # int64 [N], number of output tokens up to which the edit lasts


class Cargo:
    """The arrays that a plan sends to the device in one copy, and what is done with them there."""

    def __init__(self, passengers: Sequence[np.ndarray] = ()) -> None:
        self._arrays = list(passengers)
        self._num_passengers = len(passengers)
        self._uses: list[tuple[Callable[..., None], slice]] = []

    def add(self, use: Callable[..., None], *arrays: np.ndarray) -> None:
        """Calls ``use`` with the arrays as tensors once they are there."""
        self._uses.append((use, slice(len(self._arrays), len(self._arrays) + len(arrays))))
        self._arrays += arrays

    def deliver(self, send: Send) -> list[Tensor]:
        """Sends everything; returns the passengers."""
        sent = send(self._arrays) if self._arrays else []
        for use, part in self._uses:
            use(*sent[part])
        return sent[: self._num_passengers]


class HostView:
    """What the host knows of slots without asking the device, for attention that plans there.

    Attributes:
        pages: per KV group, as `SlotTable.pages`.
    """

    def __init__(self, num_slots: int, max_pages: int, num_groups: int) -> None:
        self._computed = np.zeros(num_slots, np.int64)
        self.pages = tuple(np.zeros((num_slots, max_pages), np.int32) for _ in range(num_groups))

    def reset(self, starts: Sequence[tuple[int, int]]) -> None:
        """Slots and how far they are computed."""
        for slot, count in starts:
            self._computed[slot] = count

    def advance(self, slots: np.ndarray, q_lens: np.ndarray, has_drafts: bool) -> np.ndarray | None:
        """Lengths after a step, int64 [B]; None if they hang on drafts whose fate is not known."""
        lens: np.ndarray = self._computed[slots] + q_lens
        self._computed[slots] = _UNKNOWN if has_drafts else lens
        return None if (lens < 0).any() else lens


class SlotTable:
    """The state of ``num_slots`` slots.

    Attributes:
        tokens: int32 [num_slots, max_len], all known tokens, then drafts; undefined behind those.
        computed: int64 [num_slots], how many tokens have their KV in the cache. Once a slot has sampled, it knows
            exactly one token more than it has computed.
        pages: per KV group, int32 [num_slots, max_pages].
        scalars, integers: the numbers of `SamplingParams` that the sampler reads, each [num_slots].
        edits: by slot, for the slots that have any.
        processors: by slot, for the slots that have one.
        embeds: by slot, float32 [num_prompt, hidden], for the slots whose prompt is given by embeddings.
        inits: by slot, what the plan said when the request took it.
        users: the slots that make use of a feature, so that what nobody uses costs nothing.
        pages_version: changes whenever ``pages`` may change.
        host_view: what the host knows of the same, if anybody wants to know it there.

    Args:
        locate, commit: the ops `decode.locate` and `decode.commit`.
        send: brings arrays to the device, if not over the memory that both share.
        has_host_view: whether the host is to know what it can.
    """

    def __init__(
        self,
        num_slots: int,
        max_len: int,
        page_size: int,
        vocab_size: int,
        device: torch.device,
        num_groups: int = 1,
        *,
        locate: Locate = locate,
        commit: Commit = commit,
        send: Send | None = None,
        has_host_view: bool = False,
    ) -> None:
        self.page_size = page_size
        self.device = device
        self._send = send or self._share
        self._locate = locate
        self._commit = commit
        self._vocab_size = vocab_size
        max_pages = -(-max_len // page_size)
        self.tokens = self._zeros(num_slots, max_len, dtype=torch.int32)
        self.computed = self._zeros(num_slots, dtype=torch.int64)
        self.pages = tuple(self._zeros(num_slots, max_pages, dtype=torch.int32) for _ in range(num_groups))
        self._scalars = self._zeros(len(get_args(Scalar)), num_slots, dtype=torch.float32)
        self._integers = self._zeros(len(get_args(Integer)), num_slots, dtype=torch.int64)
        self.scalars: dict[Scalar, Tensor] = dict(zip(get_args(Scalar), self._scalars, strict=True))
        self.integers: dict[Integer, Tensor] = dict(zip(get_args(Integer), self._integers, strict=True))
        self.edits: dict[int, LogitEdits] = {}
        self.processors: dict[int, LogitProcessor] = {}
        self.embeds: dict[int, Tensor] = {}
        self.inits: dict[int, RowInit] = {}
        self.users: dict[Feature, set[int]] = {feature: set() for feature in get_args(Feature)}
        self.pages_version = 0
        self.host_view = HostView(num_slots, max_pages, num_groups) if has_host_view else None
        self._num_pages = [[0] * num_slots for _ in range(num_groups)]
        self._prompt_computed: dict[int, int] = {}
        self._hidden_skip: dict[int, int] = {}

    def upload(self, array: np.ndarray) -> Tensor:
        """A fresh array's values on the device, without waiting for what runs there."""
        return self._send([array])[0]

    def apply(self, plan: StepPlan, passengers: Sequence[np.ndarray] = ()) -> list[Tensor]:
        """Makes the plan's changes: slots given up, requests that take a slot, computed counts, pages.

        Returns:
            ``passengers`` as tensors: fresh arrays that travel in the same copy.
        """
        self.forget(plan.finished_slots)
        cargo = Cargo(passengers)
        changed = [row for row in plan.rows if is_change(row)]
        if changed:
            self._init([row for row in changed if row.init is not None], cargo)
            self._restart(changed, cargo)
            for group, pages in enumerate(self.pages):
                self._map(pages, changed, group, cargo)
            self._write(changed, cargo)
        return cargo.deliver(self._send)

    def num_pages(self, group: int, slots: Sequence[int]) -> int:
        """The longest page table among ``slots``."""
        counts = self._num_pages[group]
        return max([counts[slot] for slot in slots], default=0)

    def locate(self, slots: Tensor) -> Located:
        """Where the next token of each of ``slots``, int64 [B], stands."""
        return self._locate(self.tokens, self.computed, self.pages, self.page_size, slots)

    def commit(self, plan: StepPlan, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """`append` and `advance` in one, for a step in which every row was one token and brought another."""
        self._commit(self.tokens, self.computed, slots, positions, token_ids)
        self._advance_prompts(plan)

    def append(self, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Records sampled tokens, int64 [L], at their places; behind a rejected draft they are void."""
        self.tokens[slots, positions] = token_ids.int()

    def advance(self, plan: StepPlan, slots: Tensor, computed: Tensor) -> None:
        """Records how far a plan's rows are computed: int64 [B], standing in ``slots``."""
        self.computed[slots] = computed
        self._advance_prompts(plan)

    def _advance_prompts(self, plan: StepPlan) -> None:
        scored, embedded = self.users["prompt_logprobs"], self.users["embeds"]
        for row in plan.rows if scored or embedded else ():
            if row.slot in scored or row.slot in embedded:
                done = self._prompt_computed[row.slot] = self._prompt_computed[row.slot] + row.num_tokens
                if done + 1 >= self.inits[row.slot].num_prompt:
                    scored.discard(row.slot)
                if done >= self.inits[row.slot].num_prompt:
                    embedded.discard(row.slot)
                    self.embeds.pop(row.slot, None)

    def prompt_span(self, slot: int, num_tokens: int) -> tuple[int, range]:
        """Where a slot's prompt stands, and which prompt positions the next ``num_tokens`` give a logprob.

        The host knows since drafts come only after the prompt. What scores position ``p`` is the hidden state of
        ``p - 1``; nothing scores position 0, which comes with the step that computes it.
        """
        init, computed = self.inits[slot], self._prompt_computed[slot]
        first = max(init.wants.logprob_start or 0, computed + 1 if computed else 0)
        return computed, range(first, min(computed + num_tokens + 1, init.num_prompt))

    def embedded_span(self, slot: int, num_tokens: int) -> range:
        """Which of the next ``num_tokens`` positions of a slot are prompt positions given by embeddings."""
        computed = self._prompt_computed[slot]
        return range(computed, min(computed + num_tokens, self.inits[slot].num_prompt))

    def skip_hidden(self, slot: int, num_tokens: int) -> int:
        """How many of the next ``num_tokens`` hidden states have been handed out before; counts them as gone by.

        Only those of a preempted request are, and what it computes again is known, so no draft is among them.
        """
        skipped = min(self._hidden_skip[slot], num_tokens)
        self._hidden_skip[slot] -= skipped
        return skipped

    def _init(self, rows: Sequence[Row], cargo: Cargo) -> None:
        scalars: list[list[float]] = []
        integers: list[list[int]] = []
        for row in rows:
            assert row.init is not None
            init, params = row.init, row.init.params
            self.inits[row.slot] = init
            scalars.append([getattr(params, name) for name in get_args(Scalar)])
            integers.append([params.top_k, init.num_prompt, stream_of(params.seed)])
            edits = _edits(init, self._vocab_size)
            if edits:
                ids, values, until = zip(*edits, strict=True)
                self.edits[row.slot] = LogitEdits(
                    *self._send([np.array(ids), np.array(values, np.float32), np.array(until)])
                )
            if params.processor is not None:
                self.processors[row.slot] = make_processor(params.processor)
            if init.embeds:
                embeds = np.frombuffer(init.embeds, np.float32).reshape(init.num_prompt, -1)
                self.embeds[row.slot] = self.upload(embeds.copy())
            self._hidden_skip[row.slot] = init.hidden_start - (row.computed or 0)
            for feature, used in _uses(init, edits, self._vocab_size).items():
                if used:
                    self.users[feature].add(row.slot)
        if rows:
            slots = np.array([row.slot for row in rows])
            cargo.add(self._set_params, slots, np.array(scalars, np.float32).T, np.array(integers).T)

    def _set_params(self, slots: Tensor, scalars: Tensor, integers: Tensor) -> None:
        self._scalars[:, slots] = scalars
        self._integers[:, slots] = integers

    def _write(self, rows: Sequence[Row], cargo: Cargo) -> None:
        """Tokens that no step has sampled: prompts, and what a grammar has settled."""
        runs: list[tuple[int, int, Sequence[int]]] = []  # slot, first place, tokens
        for row in rows:
            if row.init is not None:
                runs.append((row.slot, 0, row.init.token_ids))
            if row.new_tokens is not None:
                runs.append((row.slot, row.new_tokens.start, row.new_tokens.token_ids))
        if runs:
            width = self.tokens.shape[1]
            spans = [slot * width + np.arange(start, start + len(ids)) for slot, start, ids in runs]
            ids = np.fromiter(chain.from_iterable(ids for _, _, ids in runs), np.int32, sum(map(len, spans)))
            cargo.add(self._set_tokens, np.concatenate(spans), ids)

    def _set_tokens(self, places: Tensor, token_ids: Tensor) -> None:
        self.tokens.view(-1)[places] = token_ids

    def _restart(self, rows: Sequence[Row], cargo: Cargo) -> None:
        starts = [(row.slot, row.computed or 0) for row in rows if row.init is not None or row.computed is not None]
        if starts:
            self._prompt_computed.update(starts)
            if self.host_view is not None:
                self.host_view.reset(starts)
            cargo.add(self._set_computed, np.array(starts))

    def _set_computed(self, starts: Tensor) -> None:
        slots, counts = starts.unbind(1)
        self.computed[slots] = counts

    def _map(self, pages: Tensor, rows: Sequence[Row], group: int, cargo: Cargo) -> None:
        num_pages = self._num_pages[group]
        entries: list[tuple[int, int, int]] = []
        for row in rows:
            run = row.new_pages
            if run is not None and run.group == group:
                entries += [(row.slot, index, page) for index, page in enumerate(run.pages, run.start)]
                num_pages[row.slot] = max(num_pages[row.slot], run.start + len(run.pages))
                if self.host_view is not None:
                    self.host_view.pages[group][row.slot, run.start : run.start + len(run.pages)] = run.pages
        if entries:
            self.pages_version += 1
            table = np.array(entries)
            cargo.add(partial(_set_pages, pages), table)

    def forget(self, slots: Sequence[int]) -> None:
        """Slots that were given up."""
        for slot in slots:
            for kept in (self.inits, self.edits, self.processors, self.embeds):
                kept.pop(slot, None)
            for users in self.users.values():
                users.discard(slot)
            for counts in self._num_pages:
                counts[slot] = 0

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _share(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in arrays]


def is_change(row: Row) -> bool:
    """Whether a row changes the table before the step."""
    return row.new_pages is not None or row.init is not None or row.computed is not None or row.new_tokens is not None


def _set_pages(table: Tensor, entries: Tensor) -> None:
    slots, indices, pages = entries.unbind(1)
    table[slots, indices] = pages.int()


def _is_sampled(params: SamplingParams) -> bool:
    return params.temperature > GREEDY_TEMPERATURE and params.top_k != 1


def _uses(init: RowInit, edits: Sequence[object], vocab_size: int) -> dict[Feature, bool]:
    params, wants = init.params, init.wants
    sampled = _is_sampled(params)
    return {
        "sampled": sampled,
        "top_k": sampled and 0 < params.top_k < vocab_size,
        "top_p": sampled and params.top_p < 1.0,
        "min_p": sampled and params.min_p > 0.0,
        "output_penalty": params.frequency_penalty != 0.0 or params.presence_penalty != 0.0,
        "repetition": params.repetition_penalty != 1.0,
        "edits": bool(edits),
        "processor": params.processor is not None,
        "logprobs": wants.logprobs,
        "prompt_logprobs": wants.logprob_start is not None,
        "embeds": bool(init.embeds),
        "hidden": wants.hidden,
    }


def _edits(init: RowInit, vocab_size: int) -> list[tuple[int, float, int]]:
    """(token id, value, number of outputs until which it lasts)."""
    params = init.params
    stops = {*init.eos_ids, *params.stop_token_ids} if params.min_new_tokens > 0 else ()
    edits = [(token_id, value, _ALWAYS) for token_id, value in params.logit_bias]
    edits += [(token_id, float("-inf"), params.min_new_tokens) for token_id in stops]
    return [edit for edit in edits if 0 <= edit[0] < vocab_size]
