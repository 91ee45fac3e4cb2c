"""Runs a model that pools through the scheduler and the executor, as the engine does, without processes or text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.choice import choose_backend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.base.types import KnownMasks, PoolingParams, Request, SamplingParams
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.runtime.executor import TorchExecutor
from sgl.kernels.registry import bind

PAGE = 4
_WHOLE = PoolingParams()


class Pooled:
    """A checkpoint that answers with vectors.

    Args:
        is_embedding, pooling: as the options.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype = torch.float32,
        *,
        is_embedding: bool = False,
        pooling: Any = "auto",
        backend: str = "auto",
    ) -> None:
        self._kernels, self._device = bind("cpu", detect_isa(), dtype), open_device("cpu")
        self.model = load_model(
            path,
            read_config(path, {}),
            dtype=dtype,
            device=self._device,
            kernels=self._kernels,
            is_embedding=is_embedding,
            pooling=pooling,
        )
        self._backend = backend

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        params: PoolingParams = _WHOLE,
        overlap: int = 0,
        **settings: Any,
    ) -> list[Tensor]:
        """The vectors of prompts that run together: float32 ``[size]`` each."""
        causal = self.model.spec.is_causal
        merged: dict[str, Any] = {"max_step_tokens": 512, "split_prompts": causal, "prefix_caching": causal, **settings}
        config = SchedulerConfig(num_pages=256, page_size=PAGE, max_running=6, max_queued=100, max_len=200, **merged)
        scheduler = Scheduler(config, NoGrammars())
        executor = TorchExecutor(
            self.model,
            choose_backend(self._backend, self._device, self.model.kv_specs, PAGE, self._kernels),
            self._device,
            num_slots=6,
            max_len=200,
            num_pages=256,
            page_size=PAGE,
        )
        nothing_new = SamplingParams(max_new_tokens=0)
        for index, prompt in enumerate(prompts):
            scheduler.add(Request(rid=str(index), token_ids=tuple(prompt), params=nothing_new, pooling=params), 0.0)
        found: dict[str, Tensor] = {}
        pending: deque[Any] = deque()
        while scheduler.has_work:
            plan = scheduler.schedule(0.0)
            if plan.rows:
                executor.forward(plan)
                pending.append(executor.sample(plan, KnownMasks()))
            while pending and len(pending) > (overlap if plan.rows else 0):
                for output in scheduler.update(pending.popleft().wait()):
                    assert output.finish is not None and output.finish.kind == "length", output.finish
                    found[output.rid] = torch.frombuffer(bytearray(output.pooled), dtype=torch.float32)
            scheduler.check()
        return [found[str(index)] for index in range(len(prompts))]
