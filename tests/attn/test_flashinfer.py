"""What the FlashInfer backend plans, against the definition in float64, on stand-ins of FlashInfer's wrappers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sgl.engine.attn.batch import KVSpec
from sgl.engine.attn.checks import CASES, Case, error, make_scene, replay
from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import CpuDevice
from sgl.kernels.registry import bind
from tests.attn import fake_flashinfer

if TYPE_CHECKING:
    from sgl.engine.attn.flashinfer import FlashInferBackend

pytest.importorskip("triton")

DEVICE, CPU = CpuDevice(), torch.device("cpu")
PLANNED = [case for case in CASES if not case.sinks and case.quantized is None]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlashInferBackend]:
    fake_flashinfer.install(monkeypatch)
    backend = importlib.import_module("sgl.engine.attn.flashinfer").FlashInferBackend(DEVICE)
    monkeypatch.setattr(backend, "others", NoOthers())
    yield backend


class NoOthers:
    """Where nothing may be left to the Triton kernels but the store."""

    def plan(self, batch: object) -> object:
        return batch

    def store(self, k: torch.Tensor, v: torch.Tensor, kv: object, meta: object) -> None:
        native = TorchNativeBackend(DEVICE, bind("cpu", "generic", k.dtype))
        native.store(k, v, kv, native.plan(meta))

    def run(self, *_: object) -> torch.Tensor:
        raise NotImplementedError("the Triton kernels")

    def graph_buffers(self, batch: object) -> NoOthers:
        return self


@pytest.mark.parametrize("case", PLANNED, ids=lambda case: case.name)
def test_equals_the_definition(backend: FlashInferBackend, case: Case) -> None:
    scene = make_scene(case, torch.float32, CPU)
    assert error(scene.run(backend), scene.truth(), torch.float32) <= 1


@pytest.mark.parametrize("case", [case for case in PLANNED if len(set(case.new)) == 1], ids=lambda case: case.name)
def test_a_graph_answers_as_a_step_does(backend: FlashInferBackend, case: Case) -> None:
    scene = make_scene(case, torch.float32, CPU)
    assert error(replay(scene, backend, DEVICE), scene.truth(), torch.float32) <= 1


def test_layers_of_two_kinds_have_plans_of_their_own(backend: FlashInferBackend) -> None:
    wide = make_scene(Case("", [1, 20, 1], [40, 3, 90]), torch.float32, CPU)
    narrow = replace(wide, case=replace(wide.case, window=7, softcap=2.0))
    meta = backend.plan(wide.batch)
    backend.store(wide.k, wide.v, wide.kv, meta)
    for scene in (wide, narrow, wide):
        got = backend.run(scene.q, scene.kv, meta, *scene.rules)
        assert error(got, scene.truth(), torch.float32) <= 1


def test_what_it_cannot_do_is_left_to_the_triton_kernels(backend: FlashInferBackend) -> None:
    scene = make_scene(Case("", [1, 1], [20, 30], sinks=True), torch.float32, CPU)
    meta = backend.plan(scene.batch)
    with pytest.raises(NotImplementedError):
        backend.run(scene.q, scene.kv, meta, *scene.rules)
    unknown = backend.plan(replace(scene.batch, host_seq_lens=None))
    with pytest.raises(NotImplementedError):
        backend.run(scene.q, scene.kv, unknown, *scene.rules[:3])
    graph = backend.graph_buffers(scene.batch)
    assert graph is not None and not graph.replan(replace(scene.batch, host_seq_lens=None))
    assert graph.replan(replace(scene.batch, host_seq_lens=np.array([21, 31])))


def test_says_why_it_cannot_compute_a_layer(backend: FlashInferBackend) -> None:
    why_not = importlib.import_module("sgl.engine.attn.flashinfer").why_not
    fits = KVSpec("full", 2, 128, torch.bfloat16)
    assert why_not([fits]) == ""
    assert "bfloat16" in why_not([replace(fits, dtype=torch.float32)])
    assert "dimensions" in why_not([fits, replace(fits, head_dim=80)])
    latents = KVSpec("mla", 1, 576, torch.bfloat16, latent_dim=512)
    assert why_not([latents]) == ""
    assert "latents (MLA) of 512" in why_not([replace(latents, head_dim=320, latent_dim=256)])
    assert "--kv-cache-dtype" in why_not([replace(fits, quantized=torch.int8)])
