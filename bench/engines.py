"""What a one-batch benchmark can run: this engine and transformers, behind one small interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import SamplingParams

Prompts = Sequence[Sequence[int]]


@dataclass
class Timing:
    """When a batch began and when each of its tokens came (seconds of `time.perf_counter`)."""

    start_s: float
    tokens: list[list[float]] = field(default_factory=list)  # per request

    @property
    def prefilled_s(self) -> float:
        """When the last request had its first token."""
        return max(times[0] for times in self.tokens)

    @property
    def end_s(self) -> float:
        return max(times[-1] for times in self.tokens)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of all requests per second, while all of them decode; 0 if they never do."""
        begin, end = self.prefilled_s, min(times[-1] for times in self.tokens)
        count = sum(1 for times in self.tokens for when in times if begin < when <= end)
        return count / (end - begin) if end > begin else 0.0


class BatchEngine(Protocol):
    """Answers a batch of prompts greedily with exactly ``output_len`` tokens each."""

    name: str

    def run(self, prompts: Prompts, output_len: int) -> Timing: ...

    def close(self) -> None: ...


class SglEngine:
    """This engine, in this process, through the API that everybody uses."""

    name = "sgl"

    def __init__(self, config: EngineConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self.engine = AsyncEngine.start(config, in_process=True)

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        return self._loop.run_until_complete(self._run(prompts, output_len))

    async def _run(self, prompts: Prompts, output_len: int) -> Timing:
        sampling = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True)
        requests = [GenerateRequest(input_ids=list(ids), sampling=sampling, stream=True) for ids in prompts]
        timing = Timing(time.perf_counter(), [[] for _ in prompts])
        async for position, item in self.engine.generate_batch(requests):
            timing.tokens[position] += [time.perf_counter()] * len(item.token_ids)
        return timing

    def close(self) -> None:
        self._loop.run_until_complete(self.engine.shutdown())
        self._loop.close()


class TransformersEngine:
    """transformers' ``generate`` over one padded batch, with its defaults."""

    name = "transformers"

    def __init__(self, config: EngineConfig) -> None:
        import torch
        import transformers

        from sgl.engine.base.dtypes import torch_dtype

        log: Any = transformers.logging
        log.set_verbosity_error()
        log.disable_progress_bar()
        torch.set_num_threads(config.kernel.cpu_threads or torch.get_num_threads())
        dtype = torch_dtype(config.model.dtype)
        auto: Any = transformers.AutoModelForCausalLM
        if config.model.load_format == "dummy":
            shape = transformers.AutoConfig.from_pretrained(config.model.model_path)
            self._model = auto.from_config(shape, dtype=dtype).eval()
        else:
            self._model = auto.from_pretrained(config.model.model_path, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        import torch
        import transformers

        timing = Timing(0.0, [[] for _ in prompts])

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            now = time.perf_counter()
            for times in timing.tokens:
                times.append(now)
            return torch.zeros(len(prompts), dtype=torch.bool)

        ids = torch.tensor([list(prompt) for prompt in prompts])
        timing.start_s = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )
        return timing

    def close(self) -> None:
        del self._model
