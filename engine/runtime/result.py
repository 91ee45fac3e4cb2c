"""Brings a step's outcome to the host: the only place of the runtime that waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain

import numpy as np
from torch import Tensor

from sgl.engine.base.device import Device
from sgl.engine.base.types import RowOutput, TokenLogprob
from sgl.engine.runtime.batch import PromptSpan, Step
from sgl.engine.runtime.logprobs import Scores
from sgl.engine.runtime.pooling import Pooled
from sgl.engine.runtime.sampler import Samples

NOT_FINITE = "The model's logits are not finite numbers; the weights or the chosen precision do not suit this input."
POOLED_NOT_FINITE = "The vector holds numbers that are not finite; the weights or the precision do not suit this input."
NOTHING_ALLOWED = "The grammar, logit_bias and min_new_tokens together leave no token that may come next."


class TorchStepResult:
    """The outcome of one step.

    Args:
        samples: of the step's draws.
        num_rejected: int64 [B], drafts that did not hold; None: there were no drafts.
        prompt_scores: of the prompt positions that the step's spans name, in their order.
        hidden: by hidden span of the step, float32 [N, hidden].
        pooled: the vectors of the rows that want one and are complete.
    """

    def __init__(
        self,
        step: Step,
        samples: Samples,
        num_rejected: Tensor | None,
        prompt_scores: Sequence[Scores],
        hidden: Sequence[Tensor],
        device: Device,
        pooled: Sequence[Pooled] = (),
    ) -> None:
        self._step = step
        self._failures = samples.failures
        self._hidden = [device.to_host(states) for states in hidden]
        self._pooled = [Pooled(row.row, device.to_host(row.vector)) for row in pooled]
        self._scored = samples.scored
        self._token_ids = device.to_host(samples.token_ids)
        self._peaks = device.to_host(samples.peaks)
        self._num_rejected = None if num_rejected is None else device.to_host(num_rejected)
        self._scores = [_to_host(scores, device) for scores in samples.scores]
        self._prompt_scores = [_to_host(scores, device) for scores in prompt_scores]
        self._copied = device.event()
        self._copied.record()

    def wait(self) -> list[RowOutput]:
        """One output per row of the plan."""
        self._copied.synchronize()
        if self._step.is_decode and not self._scored and not self._failures and self._is_finite():
            outputs = [RowOutput(token_ids=[token_id]) for token_id in self._token_ids.tolist()]
        else:
            outputs = self._read()
        self._add_prompts(outputs)
        self._add_hidden(outputs)
        self._add_pooled(outputs)
        return outputs

    def _is_finite(self) -> bool:
        return bool(np.isfinite(self._peaks.numpy()).all())

    def _read(self) -> list[RowOutput]:
        """Tokens of rows of any kind, with what goes with them or what is wrong with them."""
        token_ids, peaks = self._token_ids.tolist(), self._peaks.tolist()
        logprobs = dict(zip(self._scored, read_logprobs(self._scores), strict=True))
        outputs: list[RowOutput] = []
        end = 0
        rows = self._step.plan.rows
        num_rejected = [0] * len(rows) if self._num_rejected is None else self._num_rejected.tolist()
        for row, rejected in zip(rows, num_rejected, strict=True):
            begin, end = end, end + (1 + row.num_draft if row.kind == "token" else 0)
            draws = range(begin, end - rejected)
            error = next((_error(peaks[draw]) for draw in draws if not math.isfinite(peaks[draw])), None)
            error = next((self._failures[draw] for draw in draws if draw in self._failures), error)
            outputs.append(
                RowOutput(
                    token_ids=token_ids[draws.start : draws.stop],
                    logprobs=[logprobs[draw] for draw in draws if draw in logprobs],
                    error=error,
                )
            )
        return outputs

    def _add_prompts(self, outputs: list[RowOutput]) -> None:
        scores = read_logprobs(self._prompt_scores)
        for span in self._step.prompt_spans:
            output = outputs[span.row]
            output.prompt_logprobs = [_prompt_logprob(span, position, scores) for position in span.positions]
            if any(math.isnan(entry.logprob or 0.0) for entry in output.prompt_logprobs):
                output.error = NOT_FINITE

    def _add_hidden(self, outputs: list[RowOutput]) -> None:
        for span, states in zip(self._step.hidden_spans, self._hidden, strict=True):
            num_draft = self._step.plan.rows[span.row].num_draft
            accepted = len(states) - (1 + num_draft - len(outputs[span.row].token_ids) if num_draft else 0)
            outputs[span.row].hidden = [state.tobytes() for state in states[:accepted].numpy()]

    def _add_pooled(self, outputs: list[RowOutput]) -> None:
        for row in self._pooled:
            vector = row.vector.numpy()
            outputs[row.row].pooled = vector.astype("<f4", copy=False).tobytes()
            if not np.isfinite(vector).all():
                outputs[row.row].error = POOLED_NOT_FINITE


def to_bytes(tensor: Tensor, device: Device) -> bytes:
    """The numbers of a tensor, in order; waits for them."""
    host = device.to_host(tensor)
    device.synchronize()
    return host.numpy().tobytes()


def _prompt_logprob(span: PromptSpan, position: int, scores: Iterator[TokenLogprob]) -> TokenLogprob:
    return next(scores) if position else TokenLogprob(span.init.token_ids[0], None)


def _error(peak: float) -> str:
    return NOTHING_ALLOWED if peak == -math.inf else NOT_FINITE


def _to_host(scores: Scores, device: Device) -> Scores:
    return Scores(
        scores.wants,
        *(device.to_host(getattr(scores, field.name)) for field in fields(scores) if field.name != "wants"),
    )


def read_logprobs(blocks: Sequence[Scores]) -> Iterator[TokenLogprob]:
    return chain.from_iterable(map(_read_block, blocks))


def _read_block(scores: Scores) -> Iterator[TokenLogprob]:
    chosen_values = iter(scores.chosen_values.tolist())
    for want, token_id, value, top_ids, top_values in zip(
        scores.wants,
        scores.token_ids.tolist(),
        scores.values.tolist(),
        scores.top_ids.tolist(),
        scores.top_values.tolist(),
        strict=True,
    ):
        top = tuple(zip(top_ids, top_values, strict=True))[: want.top_logprobs]
        yield TokenLogprob(
            token_id, value, top, tuple((other, next(chosen_values)) for other in want.token_logprob_ids)
        )
