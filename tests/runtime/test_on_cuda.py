"""The engine as it runs on a GPU, on one that is not there: no tensor stands in the wrong place and no step waits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from sgl.bench import gpu_sections
from sgl.bench.gpu_engine import Answer, Station, Strict
from sgl.engine.attn.triton import TritonBackend
from sgl.engine.base.device import CudaDevice, open_device
from sgl.engine.base.types import (
    Add,
    Call,
    KnownMasks,
    PageRun,
    PoolingParams,
    Processor,
    Request,
    Row,
    RowInit,
    SamplingParams,
    StepPlan,
    Wants,
)
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.runtime.executor import TorchExecutor
from sgl.engine.runtime.graphs import GraphOptions, Graphs
from sgl.engine.runtime.sampler import SamplingOps
from sgl.kernels.registry import bind
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.runtime.driver import Driver
from tests.runtime.fake_cuda import DeviceTensor, FakeCuda, PlaceError, WaitError, installed
from tests.runtime.test_graphs import Repeater

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one here")

SMALL: dict[str, Any] = {
    "max_total_tokens": 1024,
    "context_length": 96,
    "chunked_prefill_size": 32,
    "max_running_requests": 4,
    "cuda_graph_max_bs": 2,
}

LATENT = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama-eager": ("llama", {}, {"disable_cuda_graph": True}),
    "llama-torch": ("llama", {}, {"attention_backend": "torch_native", "kernel.overrides": ("reference",)}),
    "llama-int4": ("llama", {}, {"quantization": "int4-g32"}),
    "llama-fp8": ("llama", {}, {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3"}),
    "gemma2": ("gemma2", {"head_dim": 16}, {"quantization": "int8"}),
    "gpt2": ("gpt2", {}, {}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2}, {}),
    "qwen3_moe-fp8": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2}, {"quantization": "fp8"}),
    "deepseek_v3": ("deepseek_v3", LATENT, {}),
}
"""Family, its config, and options of the engine."""

FIRST = ("llama", "llama-fp8", "qwen2_moe", "deepseek_v3")
"""Those of the default run."""

PROCESSORS = {
    "ban_tokens": '{"token_ids": [5]}',
    "only_tokens": '{"token_ids": [5, 9]}',
    "force_tokens": '{"token_ids": [5, 9]}',
    "min_length": '{"length": 2}',
    "no_repeat_ngram": '{"size": 2}',
    "temperature_schedule": '{"start": 1.0, "end": 2.0, "steps": 3}',
    "thinking_budget": '{"budget": 1, "end_id": 9}',
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Its kernels are launched and do nothing."""
    monkeypatch.setattr(Graphs, "_is_worth", lambda *times: True)
    with installed(runs_kernels=False) as found:
        yield found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"), tokenizer=False)


def strict(station: Station) -> None:
    """From here on no step may wait."""
    station.wrap(lambda executor: Strict(executor, CudaDevice(0)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in MODELS]
)
def test_steps_of_a_model(name: str, gpu: FakeCuda, tmp_path: Path) -> None:
    family, fields, options = MODELS[name]
    path = make_checkpoint(family, tmp_path, tokenizer=False, dtype=torch.bfloat16, **fields)
    station = Station(device="cuda", model_path=str(path), canary="off", **SMALL, **options)
    station.prepare()
    strict(station)
    for count, length in ((1, 3), (3, 40)):
        answers = station.run([[7 + place] * length for place in range(count)], 3)
        assert [len(answer.token_ids) for answer in answers] == [3] * count
    station.close()
    assert gpu.launched or name == "llama-torch"


def test_what_requests_may_ask_for(gpu: FakeCuda, llama: Path) -> None:
    station = Station(device="cuda", model_path=str(llama), canary="off", **SMALL)
    station.prepare()
    strict(station)
    for params, wants in gpu_sections.FEATURES.values():
        answers = station.run([[7 + place, 8, 9] * (1 + 4 * place) for place in range(3)], 3, params, wants)
        assert all(answer.token_ids for answer in answers)
    station.close()


def test_all_at_once(gpu: FakeCuda, llama: Path) -> None:
    """Requests that ask for different things share steps."""
    station = Station(device="cuda", model_path=str(llama), canary="off", **SMALL)
    strict(station)
    embeds = np.zeros((5, 64), np.float32).tobytes()
    requests = [
        Request(rid=name, token_ids=(7, 8, 9, place), params=replaced(params, 3), wants=wants)
        for place, (name, (params, wants)) in enumerate(gpu_sections.FEATURES.items())
    ]
    requests.append(Request(rid="embeds", token_ids=(0,) * 5, embeds=embeds, params=SamplingParams(max_new_tokens=3)))
    assert {len(answer.token_ids) for answer in answer_all(station, requests)} == {3}
    station.close()


def replaced(params: SamplingParams, count: int) -> SamplingParams:
    import msgspec

    return msgspec.structs.replace(params, max_new_tokens=count)


def answer_all(station: Station, requests: Sequence[Request]) -> list[Answer]:
    station._box.waiting += [Add(request) for request in requests]
    answers = [station._box.answers[request.rid] for request in requests]
    while not all(answer.is_done for answer in answers):
        station._loop.receive(0.0)
        station._loop.step()
    assert not any(answer.error for answer in answers), answers
    return answers


@pytest.mark.parametrize(("family", "head"), [("bert", ""), ("qwen3", "")])
def test_vectors(family: str, head: str, gpu: FakeCuda, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path, tokenizer=False, head=head)
    station = Station(device="cuda", model_path=str(path), canary="off", is_embedding=True, **SMALL)
    strict(station)
    requests = [
        Request(
            rid=f"{place}",
            token_ids=(5,) * (3 + 20 * place),
            params=SamplingParams(max_new_tokens=0),
            pooling=PoolingParams(dimensions=place or None),
        )
        for place in range(2)
    ]
    answer_all(station, requests)
    station.close()


def test_operations(gpu: FakeCuda, llama: Path, tmp_path: Path) -> None:
    """Weights are exchanged, released and taken again, and looked at, some of it on a thread of its own."""
    other = make_checkpoint("llama", tmp_path, tokenizer=False, seed=1)
    station = Station(device="cuda", model_path=str(llama), canary="off", **SMALL)
    replies = []
    station._loop._outbox = Replies(station._loop._outbox, replies)
    hidden = np.zeros((2, 64), np.float32).tobytes()
    for call in (
        Call(1, "update_weights", {"model_path": str(other)}),
        Call(2, "release_memory"),
        Call(3, "resume_memory"),
        Call(4, "logprobs", {"hidden": hidden}),
        Call(5, "get_weights", {"name": "model.norm.weight"}),
    ):
        station._box.waiting.append(call)
        deadline_s = time.monotonic() + 60
        while not any(reply.call_id == call.call_id for reply in replies):
            assert time.monotonic() < deadline_s
            station._loop.receive(0.0)
            station._loop.step()
        assert replies[-1].error is None, replies[-1]
        if call.name != "release_memory":
            assert len(station.run([[1, 2, 3]], 2)[0].token_ids) == 2
    station.close()


class Replies:
    def __init__(self, outbox: Any, replies: list[Any]) -> None:
        self._outbox, self._replies = outbox, replies

    def send(self, message: Any) -> None:
        if type(message).__name__ == "Reply":
            self._replies.append(message)
        self._outbox.send(message)


@pytest.mark.parametrize("has_kernels", [False, True], ids=["references", "triton"])
def test_masks_and_drafts(has_kernels: bool, gpu: FakeCuda, llama: Path) -> None:
    """What comes from the host in the middle of a step, and rows that verify."""
    device = open_device("cuda")
    kernels = bind("cuda", "sm90", torch.float32, () if has_kernels else ("reference",))
    model = load_model(llama, read_config(llama, {}), dtype=torch.float32, device=device, kernels=kernels)
    executor = TorchExecutor(
        model,
        TritonBackend(device),
        device,
        num_slots=4,
        max_len=64,
        num_pages=80,
        page_size=4,
        drafter=Repeater(2),
        graphs=GraphOptions(rows=(1, 2), tokens=(16, 32), min_speedup=0),
        sampling=SamplingOps.of(kernels),
        locate=kernels["decode.locate"],
        commit=kernels["decode.commit"],
        refill=kernels["decode.refill"],
    )
    while executor.prepare():
        pass
    inits = [
        RowInit(token_ids=(5,) * length, num_prompt=length, params=params, wants=Wants(), eos_ids=())
        for length, (params, _) in zip((1, 9, 30), gpu_sections.FEATURES.values(), strict=False)
    ]
    watched = Strict(executor, device)
    driver = Driver(watched, num_slots=4, num_pages=80, page_size=4, max_draft=2, overlap=1, max_chunk=7)
    assert all(len(job.outputs) == 4 and job.error is None for job in driver.run(inits, 4))
    pages = [PageRun(0, (place,)) for place in range(3)]
    rows = tuple(
        Row(rid="", slot=slot, num_tokens=1, kind="token", init=inits[0], computed=0, new_pages=pages[slot])
        for slot in range(3)
    )
    plan = StepPlan(0, rows)
    watched.forward(plan)
    masks = KnownMasks({0: b"\xff" * (VOCAB_SIZE // 8), 2: b"\x01" * (VOCAB_SIZE // 8)})
    assert [output.error for output in watched.sample(plan, masks).wait()] == [None] * 3


@pytest.mark.parametrize("part", ["ceilings", "model"])
def test_parts_of_the_gpu_check(part: str, gpu: FakeCuda) -> None:
    """As on a GPU, on the toys of a dry run."""
    scale = replace(gpu_sections.TINY, device="cuda", quantization="fp8")
    context = gpu_sections.Context(scale, time.monotonic() + 600)
    mark = ("a figure", 1.0, 2.0)
    model = gpu_sections.Model("llama-3.1-8b", "fp8", mark, has_prefill=True, has_steps=True, throughput=mark)
    result = (gpu_sections.ceilings if part == "ceilings" else model)(context)
    assert result.get("is_ok", True), result
    assert result["figures"]


def test_answers_are_those_of_the_cpu(llama: Path) -> None:
    """With numbers: graphs replay, results come back, and all else that is no kernel."""
    options: dict[str, Any] = {"model_path": str(llama), "dtype": "float32", "canary": "off", **SMALL}
    asked = dict(gpu_sections.FEATURES)
    for name, arguments in PROCESSORS.items():
        params = SamplingParams(
            temperature=1.0, seed=1, processor=Processor(name, arguments), stop_token_ids=(3,), ignore_eos=True
        )
        asked[name] = params, Wants(logprobs=True)
    expected = answers_of(Station(device="cpu", **{"kernel.overrides": ("reference",)}, **options), asked)
    with pytest.MonkeyPatch.context() as patch, installed(runs_kernels=True) as gpu:
        patch.setattr(Graphs, "_is_worth", lambda *times: True)
        torch_only: dict[str, Any] = {"kernel.overrides": ("reference",), "attention_backend": "torch_native"}
        station = Station(device="cuda", **torch_only, **options)
        station.prepare()
        strict(station)
        got = answers_of(station, asked)
        assert not gpu.launched
    for name in asked:
        for ours, theirs in zip(got[name], expected[name], strict=True):
            assert ours.token_ids == theirs.token_ids, name
            found, wanted = ([entry.logprob for entry in answer.logprobs] for answer in (ours, theirs))
            assert found == pytest.approx(wanted, abs=1e-4), name


def answers_of(station: Station, asked: dict[str, tuple[SamplingParams, Wants]]) -> dict[str, list[Answer]]:
    prompts = [[250], list(range(20, 60))]
    found = {name: station.run(prompts, 3, *features) for name, features in asked.items()}
    station.close()
    return found


# the GPU itself


def test_host_and_device_do_not_mix(gpu: FakeCuda) -> None:
    far, near = torch.arange(4.0, device="cuda"), torch.arange(4.0)
    assert isinstance(far, DeviceTensor) and far.is_cuda and not near.is_cuda
    assert (far + 1).tolist() == [1, 2, 3, 4] and (far * torch.tensor(2.0))[1].item() == 2
    for mixed in (lambda: far + near, lambda: torch.cat([far, near]), lambda: near.index_select(0, far.long())):
        with pytest.raises(PlaceError):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        far.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_what_waits_is_noticed(gpu: FakeCuda) -> None:
    device = CudaDevice(0)
    far, pinned = torch.arange(4.0, device="cuda"), torch.empty(4, pin_memory=True)

    def put() -> None:
        far[torch.tensor([1], device="cuda")] = 3.0  # a number of the host, which index_put_ fetches from there

    waiting = {
        "item": far.sum().item,
        "list": far.tolist,
        "mask": lambda: far[far > 1],
        "nonzero": far.nonzero,
        "cpu": far.cpu,
        "pageable": lambda: torch.zeros(4).copy_(far, non_blocking=True),
        "blocking": lambda: pinned.copy_(far),
        "made of a list": lambda: torch.tensor([1], device="cuda"),
        "index of the host": lambda: far[torch.tensor([1])],
        "index of a list": lambda: far[[1]],
        "index of the device": lambda: pinned[far[1].long()],
        "number of the host": put,
    }
    for name, wait in waiting.items():
        with pytest.raises(WaitError), device.forbid_waits():
            wait()
            pytest.fail(name)
    with device.forbid_waits():
        assert pinned.copy_(far, non_blocking=True).tolist() == [0, 1, 2, 3]
        far[1:2] = 3.0
        assert device.to_host(far).tolist() == [0, 3, 2, 3]


def test_what_is_captured_comes_again(gpu: FakeCuda) -> None:
    device, count, total = CudaDevice(0), torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda")

    def run() -> torch.Tensor:
        count.add_(1)
        return (count * 2).view(1, 1) + total

    replay = device.capture(run)
    before = count.item()
    total.fill_(100)
    assert replay().item() == 2 * (before + 1) + 100
    with pytest.raises(WaitError, match="capturing"):
        device.capture(lambda: count.item())
