"""With the C++ kernels an answer is the same to the last bit, whatever the request shared its steps and pages with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.engine.attn.backend import Captured, GraphBackend
from sgl.engine.attn.batch import ForwardBatch
from sgl.engine.attn.choice import choose_backend
from sgl.engine.attn.cpu import CpuBackend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.base.types import Add, Processor, Request, SamplingParams, TokenLogprob, Wants
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.loop import EngineLoop
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.nn.decoder import Model
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.graphs import GraphOptions
from sgl.kernels.cpu import native
from sgl.kernels.registry import bind
from sgl.quant.config import FORMATS, TORCHAO
from tests.core.simulation import Script, run_to_end
from tests.models.checkpoints import FAMILIES, VOCAB_SIZE, make_checkpoint

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

PAGE, MAX_LEN = 16, 160
OVERRIDES: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 32, "sliding_window": 20},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 20},
}
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"max_step_tokens": 7},
    {"max_step_tokens": 16, "overlap": 1},
    {"max_step_tokens": 33, "num_pages": 14, "overlap": 1},
    {"prefix_caching": False},
    {"max_step_tokens": 16, "overlap": 1, "captured_rows": (1, 2, 4, 8)},
]


class Recorder(Script):
    """Also keeps the logprobs."""

    def __init__(self, requests: list[Request]) -> None:
        super().__init__({index // 2: [] for index in range(len(requests))})
        for index, request in enumerate(requests):
            self.messages[index // 2].append(Add(request))
        self.logprobs: dict[str, list[TokenLogprob]] = {request.rid: [] for request in requests}
        self.hidden: dict[str, list[bytes]] = {request.rid: [] for request in requests}

    def send(self, message: Any) -> None:
        super().send(message)
        for item in message.items:
            self.logprobs[item.rid] += item.prompt_logprobs + item.logprobs
            self.hidden[item.rid] += item.hidden


MODELS = [
    *((family, "none", "") for family in (*FAMILIES, "qwen2_moe")),
    *(("qwen2", format, "") for format in (*FORMATS, "int8wo", "fp8", "nf4")),
    ("gpt2", "int8", ""),
    *((family, "none", "int8kv") for family in ("llama", "mistral", "gpt2", "deepseek_v2")),
    ("deepseek_v3", "none", ""),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda param: "-".join(filter(None, param)))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, quantization, kv_cache = request.param
    path = make_checkpoint(family, tmp_path_factory.mktemp(family), tokenizer=False, **OVERRIDES.get(family, {}))
    kernels = bind("cpu", detect_isa(), torch.bfloat16)
    config, device = read_config(path, {}), open_device("cpu")
    return load_model(
        path,
        config,
        dtype=torch.bfloat16,
        device=device,
        kernels=kernels,
        **{"torchao_config" if quantization in TORCHAO else "quantization": quantization},
        kv_dtype=torch.int8 if kv_cache else None,
    )


class Capturable(CpuBackend):
    """With captures that are the functions themselves: padded rows and tensors that stay where they are remain."""

    def graph_buffers(self, batch: ForwardBatch) -> GraphBackend[ForwardBatch]:
        return Captured(self, batch)


def make_requests() -> list[Request]:
    rng = random.Random(3)
    stem = tuple(rng.randrange(VOCAB_SIZE) for _ in range(80))
    requests = []
    for number in range(8):
        prompt = stem[: rng.choice([0, 16, 66, 80])] + tuple(
            rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))
        )
        processor = Processor("no_repeat_ngram", '{"size": 2}') if number in (2, 4) else None
        params = SamplingParams(max_new_tokens=20, temperature=rng.choice([0.0, 0.8]), seed=number, processor=processor)
        wants = Wants(logprobs=True, logprob_start=0 if number == 1 else None, hidden=number in (1, 2, 6))
        requests.append(Request(rid=str(number), token_ids=prompt, params=params, wants=wants))
    return requests


def run(
    model: Model,
    requests: list[Request],
    *,
    overlap: int = 0,
    num_pages: int = 100,
    max_step_tokens: int = 512,
    prefix_caching: bool = True,
    captured_rows: tuple[int, ...] = (),
) -> Recorder:
    kernels = bind("cpu", detect_isa(), torch.bfloat16)
    device = open_device("cpu")
    backend = choose_backend("auto", device, model.kv_specs, PAGE, kernels)
    assert isinstance(backend, CpuBackend)
    config = SchedulerConfig(
        num_pages, PAGE, 8, max_step_tokens, 100, MAX_LEN, conservativeness=0.1, prefix_caching=prefix_caching
    )
    graphs = GraphOptions(captured_rows, min_speedup=0) if captured_rows else None
    sizes = {"num_slots": 8, "max_len": MAX_LEN, "num_pages": num_pages, "page_size": PAGE}
    executor = TorchExecutor(model, Capturable() if graphs else backend, device, **sizes, graphs=graphs)
    while executor.prepare():
        pass
    recorder = Recorder(requests)
    scheduler = Scheduler(config, NoGrammars())
    run_to_end(EngineLoop(scheduler, executor, recorder, recorder, overlap=overlap), recorder)
    return recorder


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_answers_are_those_of_the_request_alone_bit_for_bit(model: Model, schedule: dict[str, Any]) -> None:
    requests = make_requests()
    together = run(model, requests, **schedule)
    for request in requests:
        alone = run(model, [request])
        assert together.tokens[request.rid] == alone.tokens[request.rid]
        assert together.logprobs[request.rid] == alone.logprobs[request.rid]
        assert together.hidden[request.rid] == alone.hidden[request.rid]
        num_known = len(request.token_ids) + len(together.tokens[request.rid])
        assert len(together.hidden[request.rid]) == (num_known - 1 if request.wants.hidden else 0)


def test_a_warm_cache_changes_no_bit(model: Model) -> None:
    requests = make_requests()
    twice = run(
        model,
        [
            *requests,
            *(Request(rid=f"again{r.rid}", token_ids=r.token_ids, params=r.params, wants=r.wants) for r in requests),
        ],
    )
    for request in requests:
        again = f"again{request.rid}"
        assert twice.tokens[again] == twice.tokens[request.rid]
        assert twice.logprobs[again] == twice.logprobs[request.rid]
        assert twice.hidden[again] == twice.hidden[request.rid]
    assert sum(twice.cached[f"again{r.rid}"] for r in requests) > sum(twice.cached[r.rid] for r in requests)


@pytest.mark.parametrize("forced", ["norm.rms=reference", "linear=onednn.bf16", "reference"])
def test_a_forced_implementation_is_the_one_that_runs(forced: str, tmp_path: Path) -> None:
    """Joined layers and the C++ backend compute some ops themselves; they must stand back when another is asked for."""
    if "onednn" in forced and not detect_isa().startswith(("avx512", "amx")):
        pytest.skip("this processor has no avx512")
    path = make_checkpoint("llama", tmp_path, tokenizer=False)
    kernels, device = bind("cpu", detect_isa(), torch.bfloat16, (forced,)), open_device("cpu")
    model = load_model(path, read_config(path, {}), dtype=torch.bfloat16, device=device, kernels=kernels)
    assert not model.is_fused
    backend = choose_backend("auto", device, model.kv_specs, PAGE, kernels)
    assert isinstance(backend, CpuBackend) == (forced != "reference")
    requests = make_requests()
    assert run(model, requests).finished.keys() == {request.rid for request in requests}
