"""Chooses tokens from logits; it knows nothing of models, plans or KV.

The order is SGLang's: logit_bias, and stop tokens that must not come yet; frequency and presence penalty (over output
tokens); repetition penalty (over prompt and output); logit processors; grammar masks; then temperature and softmax;
then top-k, top-p and min-p, all three judged on that one distribution.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgl.engine.base.processors import LogitContext
from sgl.engine.base.types import UNSETTLED, HostDraws, Masks
from sgl.engine.runtime.batch import Draws
from sgl.engine.runtime.logprobs import MAX_ELEMENTS, Scores, read_scores
from sgl.engine.runtime.slots import Feature, SlotTable
from sgl.kernels.ops.draw import Draw, Filter, Filters
from sgl.kernels.ops.draw import draw as reference_draw
from sgl.kernels.ops.logprobs import GatherLogprobs, logprobs
from sgl.kernels.ops.penalty import (
    PenalizeOutputs,
    PenalizeRepetition,
    Sequences,
    penalize_outputs,
    penalize_repetition,
)
from sgl.kernels.ops.sampling import Argmax, Mask, argmax, mask
from sgl.kernels.registry import Kernels

logger = logging.getLogger(__name__)

_CHANGES: tuple[Feature, ...] = ("output_penalty", "repetition", "edits", "processor")
"""What changes logits in place; masks do, too."""

_CACHED_ELEMENTS = 1 << 18
"""The same for the reference of drawing on a CPU: what its cache holds, since it passes over rows some twenty times."""


@dataclass(frozen=True)
class Samples:
    """The outcome of L draws, on the device."""

    token_ids: Tensor  # int64 [L]
    peaks: Tensor  # float32 [L], the largest adjusted logit; finite just where a token could be chosen
    scored: tuple[int, ...]  # the draws whose logprobs are wanted
    scores: tuple[Scores, ...]  # of those, in order
    failures: Mapping[int, str]  # by draw: its logit processor broke down


@dataclass(frozen=True, slots=True)
class SamplingOps:
    """The ops that sampling is made of; the references unless said."""

    argmax: Argmax = argmax
    draw: Draw = reference_draw
    logprobs: GatherLogprobs = logprobs
    mask: Mask = mask
    penalize_outputs: PenalizeOutputs = penalize_outputs
    penalize_repetition: PenalizeRepetition = penalize_repetition

    @classmethod
    def of(cls, kernels: Kernels) -> SamplingOps:
        return cls(*(kernels[f"sample.{field.name}"] for field in fields(cls)))


REFERENCES = SamplingOps()


class Sampler:
    """Samples for the slots of one table."""

    def __init__(self, table: SlotTable, ops: SamplingOps = REFERENCES) -> None:
        self._table = table
        self._ops = ops
        self._upload = table.upload
        is_cached = ops.draw is reference_draw and table.device.type == "cpu"
        self._draw_elements = _CACHED_ELEMENTS if is_cached else MAX_ELEMENTS
        self._has_tokens = table.device.type == "cpu"  # as soon as they are chosen

    def sample(self, logits: Tensor, draws: Draws, masks: Masks) -> Samples:
        """Chooses one token per draw. ``logits``, float32 [L, V], are overwritten."""
        table = self._table
        scored = draws.using("logprobs", table)
        raw = self._raw(logits, draws, scored, masks)
        self._edit(logits, draws)
        self._penalize_outputs(logits, draws)
        self._penalize_repetition(logits, draws)
        failures = self._process(logits, draws)
        token_ids, peaks = self._choose(logits, draws, masks)
        scores = (
            read_scores(
                given,
                token_ids[self._index(part, draws)],
                [table.inits[draws.slot_ids[draw]].wants for draw in part],
                table.upload,
                self._ops.logprobs,
            )
            for part, given in raw
        )
        return Samples(token_ids, peaks, tuple(scored), tuple(scores), failures)

    def _raw(
        self, logits: Tensor, draws: Draws, scored: Sequence[int], masks: Masks
    ) -> list[tuple[Sequence[int], Tensor]]:
        """The logits of ``scored`` draws as the model gave them; a copy where what follows would change them."""
        is_changed = bool(masks.rows) or any(self._table.users[feature] for feature in _CHANGES)
        raw = []
        for part in _blocks(scored, logits, MAX_ELEMENTS):
            given = logits[self._index(part, draws)]
            is_view = len(part) == len(draws)
            raw.append((part, given.clone() if is_changed and is_view else given))
        return raw

    def filters(self, draws: Draws) -> Filters:
        """What N sampled draws make of their distributions."""
        table, slots = self._table, draws.slots
        scalars = (table.scalars[name][slots] for name in ("top_p", "min_p"))
        top_p, min_p = scalars
        users: dict[Filter, list[int]] = {name: draws.using(name, table) for name in get_args(Filter)}
        most = max((table.inits[draws.slot_ids[draw]].params.top_k for draw in users["top_k"]), default=0)
        return Filters(table.scalars["temperature"][slots], table.integers["top_k"][slots], top_p, min_p, users, most)

    def _choose(self, logits: Tensor, draws: Draws, masks: Masks) -> tuple[Tensor, Tensor]:
        masked = masks.rows
        constrained = [draw for draw, row in enumerate(draws.rows) if row in masked] if masked else []
        assert len(constrained) <= len(masked), "a mask is for one position, its row cannot verify drafts"
        sampled = draws.using("sampled", self._table)
        if not self._has_tokens:
            self._mask(logits, draws, constrained, masks)
        token_ids, peaks = self._ops.argmax(logits)
        if constrained and self._has_tokens:
            self._choose_with_grammars(logits, token_ids, peaks, draws, masks, constrained, sampled)
        else:
            self._draw(logits, token_ids, draws, sampled)
        return token_ids, peaks

    def _choose_with_grammars(
        self,
        logits: Tensor,
        token_ids: Tensor,
        peaks: Tensor,
        draws: Draws,
        masks: Masks,
        constrained: Sequence[int],
        sampled: Sequence[int],
    ) -> None:
        """Asks grammars about the likeliest tokens, and for masks only where that does not do.

        Where a grammar limits logits in place a finite one is left, so ``peaks`` go on telling what they shall.
        """
        assert token_ids.is_contiguous() and logits.is_contiguous()
        chosen = (ctypes.c_int64 * len(draws)).from_address(token_ids.data_ptr())
        for draw in sampled:
            chosen[draw] = UNSETTLED
        rows = [draws.rows[draw] for draw in constrained]
        host = HostDraws(chosen, constrained, logits.data_ptr(), logits.shape[1])
        left = masks.settle(rows, host)
        told = chosen[:]  # reading them one by one takes longer
        sampled = [draw for draw in sampled if told[draw] < 0]
        unclear = [draw for draw in constrained if told[draw] == UNSETTLED] if left else []
        is_limited = left > len(unclear)
        if unclear:
            self._mask(logits, draws, unclear, masks)
            index = self._index(unclear, draws)
            token_ids[index], peaks[index] = self._ops.argmax(logits[index])
        self._draw(logits, token_ids, draws, sampled)
        if is_limited:
            masks.advance(rows, host)

    def _draw(self, logits: Tensor, token_ids: Tensor, draws: Draws, sampled: Sequence[int]) -> None:
        for part in _blocks(sampled, logits, self._draw_elements):
            index = self._index(part, draws)
            some = draws.take(part, index)
            streams = self._table.integers["stream"][some.slots]
            token_ids[index] = self._ops.draw(logits[index], self.filters(some), streams, self._ordinals(some))

    def _edit(self, logits: Tensor, draws: Draws) -> None:
        users = draws.using("edits", self._table)
        if not users:
            return
        edits = [self._table.edits[draws.slot_ids[draw]] for draw in users]
        rows = self._upload(np.repeat(users, [len(edit.ids) for edit in edits]))
        lasting = self._ordinals(draws)[rows] < torch.cat([edit.until for edit in edits])
        values = torch.cat([edit.values for edit in edits]).where(lasting, 0.0)
        logits.index_put_((rows, torch.cat([edit.ids for edit in edits])), values, accumulate=True)

    def _penalize_outputs(self, logits: Tensor, draws: Draws) -> None:
        users = draws.using("output_penalty", self._table)
        if not users:
            return
        table, sequences = self._table, self._sequences(draws, users)
        begins, frequency, presence = (
            values[sequences.slots]
            for values in (
                table.integers["num_prompt"],
                table.scalars["frequency_penalty"],
                table.scalars["presence_penalty"],
            )
        )
        self._ops.penalize_outputs(logits, sequences, begins, frequency, presence)

    def _penalize_repetition(self, logits: Tensor, draws: Draws) -> None:
        users = draws.using("repetition", self._table)
        if users:
            sequences = self._sequences(draws, users)
            penalty = self._table.scalars["repetition_penalty"][sequences.slots]
            self._ops.penalize_repetition(logits, sequences, penalty)

    def _sequences(self, draws: Draws, users: Sequence[int]) -> Sequences:
        """What stands before ``users``; as wide as the pages of the longest."""
        rows, table = self._upload(np.array(users)), self._table
        width = table.num_pages(0, [draws.slot_ids[draw] for draw in users]) * table.page_size
        return Sequences(rows, draws.slots[rows], table.tokens, draws.positions[rows], width)

    def _process(self, logits: Tensor, draws: Draws) -> dict[int, str]:
        """Runs custom logit processors, row by row so that none depends on the others; returns which of them failed."""
        failures: dict[int, str] = {}
        for draw in draws.using("processor", self._table):
            slot, row = draws.slot_ids[draw], logits[draw : draw + 1]
            init = self._table.inits[slot]
            stop_ids = (*init.params.stop_token_ids, *(() if init.params.ignore_eos else init.eos_ids))
            context = LogitContext(
                self._table.tokens[slot], draws.positions[draw], init.num_prompt, stop_ids, self._upload_ids
            )
            try:
                row.copy_(self._table.processors[slot](row, context))
            except Exception as error:
                assert init.params.processor is not None
                logger.exception("logit processor %r failed", init.params.processor.name)
                failures[draw] = f"The logit processor {init.params.processor.name!r} failed: {error!r:.200}"
                row.zero_()
        return failures

    def _upload_ids(self, ids: Sequence[int]) -> Tensor:
        return self._upload(np.array(ids, np.int64))

    def _mask(self, logits: Tensor, draws: Draws, part: Sequence[int], masks: Masks) -> None:
        if part:
            packed = _stacked(masks.read([draws.rows[draw] for draw in part]), logits.shape[1])
            self._ops.mask(logits, self._upload(np.array(part)), self._upload(packed))

    def _ordinals(self, draws: Draws) -> Tensor:
        """int64 [N], how many output tokens precede the one drawn."""
        return draws.positions - self._table.integers["num_prompt"][draws.slots]

    def _index(self, part: Sequence[int], draws: Draws) -> Tensor | slice:
        """``part`` as an index that copies nothing if that is all draws."""
        return slice(None) if len(part) == len(draws) else self._upload(np.array(part))


def _stacked(masks: Sequence[bytes], vocab_size: int) -> NDArray[np.uint8]:
    """Masks as rows of bytes, [N, ceil(V / 8)]; what a mask does not speak of is forbidden."""
    width = -(-vocab_size // 8)
    joined = bytearray().join(mask if len(mask) == width else mask[:width].ljust(width, b"\0") for mask in masks)
    return np.frombuffer(joined, np.uint8).reshape(len(masks), width)


def _blocks(draws: Sequence[int], logits: Tensor, max_elements: int) -> Iterator[Sequence[int]]:
    size = max(max_elements // logits.shape[1], 1)
    return (draws[start : start + size] for start in range(0, len(draws), size))
