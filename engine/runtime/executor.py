"""Runs plans on a model: apply, build the batch, forward, logits, sample, record, report. It schedules nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.base.device import Device
from sgl.engine.base.shortage import shortage
from sgl.engine.base.trace import span
from sgl.engine.base.types import KnownMasks, Masks, PageRun, Row, RowInit, RowKind, SamplingParams, StepPlan, Wants
from sgl.engine.runtime.batch import PromptSpan, Step, StepBuilder
from sgl.engine.runtime.drafts import NO_DRAFTS, Drafter, count_rejected
from sgl.engine.runtime.graphs import Eager, GraphOptions, Graphs, Runner
from sgl.engine.runtime.kv import allocate_kv
from sgl.engine.runtime.logprobs import Scores, read_scores
from sgl.engine.runtime.pooling import Head, Pooled, Pooler
from sgl.engine.runtime.result import TorchStepResult
from sgl.engine.runtime.sampler import MAX_ELEMENTS, REFERENCES, Sampler, SamplingOps
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.ops.decode import Commit, Locate, Refill, commit, locate, refill

_LESS = "lower --chunked-prefill-size, --max-running-requests or --mem-fraction-static"


class Model(Protocol):
    """What the executor asks of a model."""

    @property
    def kv_specs(self) -> Sequence[KVSpec]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def pooling(self) -> Head | None:
        """What follows the hidden states in place of logits."""

    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        """Stores the batch's KV and returns the last hidden states [T, hidden]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """A fresh float32 [L, V] for hidden states [L, hidden]."""


@dataclass(frozen=True)
class _Forwarded:
    """What `TorchExecutor.forward` leaves for `TorchExecutor.sample`."""

    step: Step
    logits: Tensor  # float32 [L, V]
    prompt_scores: tuple[Scores, ...]
    hidden: tuple[Tensor, ...]  # by hidden span: float32 [N, hidden]
    pooled: tuple[Pooled, ...]


@dataclass(frozen=True)
class _NoModel:
    """Where a model was and will be again."""

    kv_specs: Sequence[KVSpec]
    vocab_size: int
    pooling: Head | None = None

    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        raise AssertionError("the memory is released")

    def logits(self, hidden: Tensor) -> Tensor:
        raise AssertionError("the memory is released")


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
        self._model = model
        self._backend = backend
        self._device = device
        self._drafter = drafter
        # behind the longest sequence there is the token sampled last, then drafts
        width = self._width = max_len + 1 + self._drafter.num_draft
        self._num_pages = num_pages
        num_spare = 0 if graphs is None else 1  # a slot and a page for what nobody reads
        self._table = SlotTable(
            num_slots + num_spare,
            width,
            page_size,
            model.vocab_size,
            device.torch_device,
            locate=locate,
            commit=commit,
            send=device.upload,
            has_host_view=backend.plans_on_host,
        )
        self._make_kv = partial(allocate_kv, model.kv_specs, num_pages + num_spare, page_size, device)
        self._kv = self._make_kv()
        self._graphs, self._refill = graphs, refill
        if graphs is not None:
            for pages in self._table.pages:
                pages[-1].fill_(num_pages)
        self._runner = self._make_runner()
        self._is_short = False
        self._builder = StepBuilder(self._table)
        self._sampler = Sampler(self._table, sampling)
        self._num_slots = num_slots
        self._pooler = Pooler(model.pooling, self._table, num_slots)
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
        return self._runner.prepare()

    def warm_up(self) -> None:
        """Runs steps of no request, so that the first request does not wait for what is compiled on first use."""
        num_tokens = min(24, self._width - 4, self._table.page_size * self._num_pages - 4)
        if num_tokens < 1:
            return
        kind: RowKind = "token" if self._model.pooling is None else "none"
        pages = PageRun(0, tuple(range(-(-(num_tokens + 4) // self._table.page_size))))
        ids, params = (0,) * num_tokens, SamplingParams(temperature=1.0, top_k=8, top_p=0.9, min_p=0.01)
        init = RowInit(token_ids=ids, num_prompt=num_tokens, params=params, wants=Wants(), eos_ids=())
        first = Row(rid="", slot=0, num_tokens=num_tokens, kind=kind, init=init, computed=0, new_pages=pages)
        rows = [first, *[Row(rid="", slot=0, num_tokens=1, kind=kind)] * (2 if kind == "token" else 0)]
        for row in rows:
            plan = StepPlan(0, (row,))
            self.forward(plan)
            self.sample(plan, KnownMasks()).wait()
        self._table.apply(StepPlan(0, (), (0,)))

    def _check_memory(self, error: Exception) -> None:
        """Raises what is told about a failed allocation."""
        if self._device.is_out_of_memory(error):
            self._is_short, self._forwarded = True, None
            raise shortage("activations", self._device, _LESS) from None

    def _forward(self, plan: StepPlan) -> None:
        with span("prepare"):
            step = self._builder.build(plan, self._runner.find)
        with span("model"):
            hidden = self._runner.run(step, self._pooler.with_types(step))
        prompt_scores = tuple(self._score_prompts(hidden, step.prompt_spans)) if step.prompt_spans else ()
        chosen = hidden if len(step.draws) == len(hidden) else hidden[step.batch.logit_indices]
        with span("logits"):
            logits = self._model.logits(chosen) if len(step.draws) else self._no_logits
        wanted = tuple(hidden[span.positions.start : span.positions.stop].float() for span in step.hidden_spans)
        self._forwarded = _Forwarded(step, logits, prompt_scores, wanted, self._pooler.pool(step, hidden))

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

    @torch.inference_mode()
    def logprobs(self, hidden: Tensor) -> Tensor:
        """Log probabilities of every token behind hidden states [N, hidden] that steps have brought: float32 [N, V]."""
        return self._model.logits(hidden).log_softmax(-1)

    def exchange(self, model: Model) -> None:
        """Computes with another model of the same kind from the next step on; nothing that is cached holds any more."""
        self._model = model
        self._pooler = Pooler(model.pooling, self._table, self._num_slots)
        if not self._kv:
            self._kv = self._make_kv()
        self._runner = self._make_runner()

    def release(self) -> None:
        """Frees weights and KV cache; there is no step before the next `exchange`."""
        self.exchange(_NoModel(self._model.kv_specs, self._model.vocab_size))
        self._free()

    def close(self) -> None:
        """Frees the KV cache."""
        self._free()
        self._forwarded = None

    def _free(self) -> None:
        self._kv = ()
        self._runner = Eager(self._model, (), self._backend)

    def _make_runner(self) -> Runner:
        if self._graphs is None:
            return Eager(self._model, self._kv, self._backend)
        q_lens = sorted({1, 1 + self._drafter.num_draft})
        parts = (self._model, self._kv, self._backend, self._table, self._device)
        return Graphs(*parts, self._graphs, q_lens=q_lens, refill=self._refill)

    def _score_prompts(self, hidden: Tensor, spans: Sequence[PromptSpan]) -> Iterator[Scores]:
        """Logprobs of prompt tokens, block by block: the logits of a long prompt would be gigabytes."""
        sources = [source for span in spans for source in span.sources]
        targets = [span.init.token_ids[position] for span in spans for position in span.positions if position]
        wants = [span.init.wants for span in spans for _ in span.sources]
        size = max(MAX_ELEMENTS // self._model.vocab_size, 1)
        for part in (slice(start, start + size) for start in range(0, len(sources), size)):
            upload = self._table.upload
            logits = self._model.logits(hidden[upload(np.array(sources[part]))])
            yield read_scores(logits.log_softmax(-1), upload(np.array(targets[part])), wants[part], upload)
