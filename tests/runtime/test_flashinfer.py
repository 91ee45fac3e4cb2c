"""The engine with attention planned on the host, on a GPU that is not there: stand-ins of FlashInfer's wrappers launch
as kernels do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

pytest.importorskip("triton")

from sgl.bench.gpu_engine import Answer, Station
from sgl.engine.attn import choice
from sgl.engine.runtime.graphs import Graphs
from tests.attn import fake_flashinfer
from tests.attn.fake_flashinfer import (
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    Paged,
    merge_state_in_place,
)
from tests.models.checkpoints import make_checkpoint
from tests.runtime.fake_cuda import DeviceTensor, installed
from tests.runtime.test_on_cuda import SMALL, strict

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one here")


def near(tree: Any) -> Any:
    return tree_map_only(DeviceTensor, lambda tensor: tensor.values, tree)


def launched(run: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper's `run` as a kernel: it finds its tensors on the device, and is part of what is captured."""

    def launch(self: Paged, *args: Any, out: DeviceTensor, return_lse: bool = False) -> Any:
        sums = out.new_empty(out.shape[:2], dtype=torch.float32)

        def work() -> None:
            there = copy.copy(self)
            there.buffers = near(self.buffers)
            with _disable_current_modes():
                _, found = run(there, *near(args), out=near(out), return_lse=True)
                near(sums).copy_(found)

        assert not self.is_graph or all(isinstance(buffer, DeviceTensor) for buffer in self.buffers)
        out.gpu.launch(type(self).__name__, (1,), (*tree_leaves(args), out, self.buffers[-1]), work)
        return (out, sums) if return_lse else out

    return launch


def merged(*tensors: DeviceTensor) -> None:
    def work() -> None:
        with _disable_current_modes():
            merge_state_in_place(*near(tensors))

    tensors[0].gpu.launch("merge", (1,), tensors, work)


@pytest.fixture
def launching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_flashinfer, "merge_state_in_place", merged)
    for wrapper in (BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper):
        monkeypatch.setattr(wrapper, "run", launched(wrapper.run))
    fake_flashinfer.install(monkeypatch)
    monkeypatch.setattr(choice, "find_spec", lambda package: package)
    monkeypatch.setattr("sgl.kernels.flashinfer.attention.DTYPES", (torch.float32,))  # as exact as the CPU
    monkeypatch.setattr(Graphs, "_is_worth", lambda *times: True)


@pytest.mark.parametrize("worth", [1, 1 << 40], ids=["prefixes", "graphs"])
def test_answers_are_those_of_the_cpu(
    worth: int, launching: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint("llama", tmp_path, tokenizer=False, head_dim=64)
    options: dict[str, Any] = {"model_path": str(path), "dtype": "float32", "canary": "off", **SMALL}
    options["kernel.overrides"] = ("reference",)
    expected = answers_of(Station(device="cpu", **options))
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", worth)
    with installed(runs_kernels=True) as gpu:
        station = Station(device="cuda", attention_backend="flashinfer", **options)
        station.prepare()
        strict(station)
        assert gpu.launched["merge"] == 1, "compiled at the start"
        gpu.launched.clear()
        assert answers_of(station) == expected
        assert (gpu.launched["merge"] > 0) == (worth == 1)
        assert (gpu.launched[BatchDecodeWithPagedKVCacheWrapper.__name__] > 0) == (worth == 1), "graphs are replayed"


def answers_of(station: Station) -> Sequence[list[int]]:
    """Of prompts that begin alike, whose pages lie in the cache from the second time on."""
    prompts = [[*range(20, 60), *rest] for rest in ([7], [7, 8, 9])]
    answers: list[Answer] = [answer for _ in range(2) for answer in station.run(prompts, 3)]
    station.close()
    return [answer.token_ids for answer in answers]
