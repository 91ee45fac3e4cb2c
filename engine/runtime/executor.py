"""Runs plans on a model: apply, build the batch, forward, logits, sample, record, report. It schedules nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.base.device import Device
from sgl.engine.base.shortage import shortage
from sgl.engine.base.trace import span
from sgl.engine.base.types import KnownMasks, Masks, RowOutput, StepPlan
from sgl.engine.runtime.batch import Step, StepBuilder
from sgl.engine.runtime.drafts import NO_DRAFTS, Drafter, count_rejected
from sgl.engine.runtime.graphs import GraphOptions
from sgl.engine.runtime.loaded import Loaded
from sgl.engine.runtime.logprobs import Scores, score_prompts
from sgl.engine.runtime.model import Model
from sgl.engine.runtime.pooling import Pooled
from sgl.engine.runtime.result import TorchStepResult
from sgl.engine.runtime.sampler import REFERENCES, Sampler, SamplingOps
from sgl.engine.runtime.slots import SlotTable
from sgl.engine.runtime.warmup import first_steps
from sgl.kernels.ops.decode import Commit, Locate, Refill, commit, locate, refill

_LESS = "lower --chunked-prefill-size, --max-running-requests or --mem-fraction-static"


@dataclass(frozen=True)
class _Forwarded:
    """What `TorchExecutor.forward` leaves for `TorchExecutor.sample`."""

    step: Step
    logits: Tensor  # float32 [L, V]
    prompt_scores: tuple[Scores, ...]
    hidden: tuple[Tensor, ...]  # by hidden span: float32 [N, hidden]
    pooled: tuple[Pooled, ...]


class TorchExecutor:
    """Executes plans on one device. Neither method waits for the device; only the result does.

    Args:
        num_slots: requests that can be in the batch at once.
        max_len: longest sequence, prompt and output.
        num_pages: size of the KV cache.
        graphs: what is captured of the model's steps, None for nothing.
        sampling: the ops of the sampler.
        locate, commit, refill: the ops `decode.locate`, `decode.commit` and `decode.refill`.
    """

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend[Any],
        device: Device,
        *,
        num_slots: int,
        max_len: int,
        num_pages: int,
        page_size: int,
        drafter: Drafter = NO_DRAFTS,
        graphs: GraphOptions | None = None,
        sampling: SamplingOps = REFERENCES,
        locate: Locate = locate,
        commit: Commit = commit,
        refill: Refill = refill,
    ) -> None:
        self._device = device
        self._drafter = drafter
        # behind the longest sequence there is the token sampled last, then drafts
        width = max_len + 1 + drafter.num_draft
        self._max_tokens = min(max_len, page_size * num_pages)
        num_spare = 0 if graphs is None else 1  # for what a capture computes and nobody reads
        self._table = SlotTable(
            num_slots + num_spare,
            width,
            page_size,
            model.vocab_size,
            device.torch_device,
            locate=locate,
            commit=commit,
            send=device.upload,
            has_host_view=backend.traits.plans_on_host,
        )
        self.loaded = Loaded(
            model,
            backend,
            device,
            self._table,
            num_pages=num_pages,
            graphs=graphs,
            q_lens=sorted({1, 1 + drafter.num_draft}),
            refill=refill,
        )
        self._samples = model.pooling is None
        self._vocab_size = model.vocab_size
        self._is_short = False
        self._builder = StepBuilder(self._table)
        self._sampler = Sampler(self._table, sampling)
        self._gather = sampling.logprobs
        self._no_logits = torch.empty(0, model.vocab_size, device=device.torch_device)
        self._forwarded: _Forwarded | None = None

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Starts a step: all that does not need its masks.

        Raises:
            OutOfMemoryError: from here or from `sample`; nothing of the step counts.
        """
        if self._is_short:
            self._device.trim()
            self._is_short = False
        try:
            self._forward(plan)
        except Exception as error:
            self._check_memory(error)
            raise

    @torch.inference_mode()
    def sample(self, plan: StepPlan, masks: Masks) -> TorchStepResult:
        """Finishes the step that `forward` started and brings the slot table up to date."""
        try:
            return self._sample(plan, masks)
        except Exception as error:
            self._check_memory(error)
            raise

    def prepare(self) -> bool:
        """Does one thing that makes later steps faster, between steps; False if none is left."""
        return self.loaded.prepare()

    def warm_up(self) -> None:
        """Runs steps of no request, so that the first request does not wait for what is compiled on first use."""
        self.run_alone(first_steps(self._max_tokens, self._table.page_size, samples=self._samples))

    def run_alone(self, plans: Iterable[StepPlan]) -> list[RowOutput]:
        """Runs steps of no request in slot 0, which nobody has: one row each, whose outputs it returns."""
        outputs: list[RowOutput] = []
        for plan in plans:
            self.forward(plan)
            outputs += self.sample(plan, KnownMasks()).wait()
        self._table.forget((0,))
        return outputs

    def close(self) -> None:
        """Frees the KV cache."""
        self.loaded.close()
        self._forwarded = None

    def _check_memory(self, error: Exception) -> None:
        """Raises what is told about a failed allocation."""
        if self._device.is_out_of_memory(error):
            self._is_short, self._forwarded = True, None
            raise shortage("activations", self._device, _LESS) from None

    def _forward(self, plan: StepPlan) -> None:
        loaded = self.loaded
        with span("prepare"):
            step = self._builder.build(plan, loaded.find)
        with span("model"):
            hidden = loaded.run(step)
        scores: tuple[Scores, ...] = ()
        if step.prompt_spans:
            given = (loaded.logits, self._vocab_size, self._table.upload, self._gather)
            scores = tuple(score_prompts(hidden, step.prompt_spans, *given))
        chosen = hidden if len(step.draws) == len(hidden) else hidden[step.batch.logit_indices]
        with span("logits"):
            logits = loaded.logits(chosen) if len(step.draws) else self._no_logits
        wanted = tuple(hidden[span.positions.start : span.positions.stop].float() for span in step.hidden_spans)
        self._forwarded = _Forwarded(step, logits, scores, wanted, loaded.pool(step, hidden))

    def _sample(self, plan: StepPlan, masks: Masks) -> TorchStepResult:
        forwarded, self._forwarded = self._forwarded, None
        assert forwarded is not None and forwarded.step.plan is plan, "sample follows forward of the same plan"
        step, batch, draws = forwarded.step, forwarded.step.batch, forwarded.step.draws
        samples = self._sampler.sample(forwarded.logits, draws, masks)
        rejected = None
        if step.is_decode:
            self._table.commit(plan, draws.slots, draws.positions, samples.token_ids)
        else:
            computed = batch.seq_lens.long()
            if any(row.num_draft for row in plan.rows):
                rejected = count_rejected(step, samples.token_ids, self._table)
                computed -= rejected
            self._table.append(draws.slots, draws.positions, samples.token_ids)
            self._table.advance(plan, batch.slots, computed)
        self._drafter.propose(self._table, draws)
        return TorchStepResult(
            step, samples, rejected, forwarded.prompt_scores, forwarded.hidden, self._device, forwarded.pooled
        )
