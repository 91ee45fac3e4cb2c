"""What the FlashInfer backend plans, against the definition in float64, on stand-ins of FlashInfer's wrappers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sgl.engine.attn.backend import GraphBackend, Traits
from sgl.engine.attn.batch import KVSpec
from sgl.engine.attn.checks import CASES, Case, Scene, error, make_scene, replay
from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import CpuDevice
from sgl.engine.runtime.warmup import first_steps
from sgl.kernels.registry import bind
from tests.attn import fake_flashinfer

if TYPE_CHECKING:
    from sgl.engine.attn.flashinfer import FlashInferBackend

pytest.importorskip("triton")

DEVICE, CPU = CpuDevice(), torch.device("cpu")
PLANNED = [
    case
    for case in CASES
    if not case.sinks and case.quantized is None and (case.latent_dim or case.heads <= 16 * case.kv_heads)
]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlashInferBackend]:
    fake_flashinfer.install(monkeypatch)
    backend = importlib.import_module("sgl.engine.attn.flashinfer").FlashInferBackend(DEVICE, [])
    monkeypatch.setattr(backend, "others", NoOthers())
    yield backend


class NoOthers:
    """Where nothing may be left to the Triton kernels but the store."""

    traits = Traits()

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


def check_in_one_step(backend: FlashInferBackend, *scenes: Scene) -> None:
    """Layers of one step, one after the other, over the keys and values of the first."""
    meta = backend.plan(scenes[0].batch)
    backend.store(scenes[0].k, scenes[0].v, scenes[0].kv, meta)
    for scene in scenes:
        assert error(backend.run(scene.q, scene.kv, meta, scene.rules), scene.truth(), torch.float32) <= 1


def test_layers_of_two_kinds_have_plans_of_their_own(backend: FlashInferBackend) -> None:
    wide = make_scene(Case("", [1, 20, 1], [40, 3, 90]), torch.float32, CPU)
    narrow = replace(wide, case=replace(wide.case, window=7, softcap=2.0))
    check_in_one_step(backend, wide, narrow, wide)


def test_what_it_cannot_do_is_left_to_the_triton_kernels(backend: FlashInferBackend) -> None:
    scene = make_scene(Case("", [1, 1], [20, 30], sinks=True), torch.float32, CPU)
    meta = backend.plan(scene.batch)
    with pytest.raises(NotImplementedError):
        backend.run(scene.q, scene.kv, meta, scene.rules)
    unknown = backend.plan(replace(scene.batch, host=None))
    with pytest.raises(NotImplementedError):
        backend.run(scene.q, scene.kv, unknown, replace(scene.rules, sinks=None))
    graph = backend.graph_buffers(scene.batch)
    assert graph is not None
    plain = replace(scene.rules, sinks=None)
    for rules, needs_lengths in ((scene.rules, False), (plain, True)):
        with contextlib.suppress(NotImplementedError):
            graph.run(scene.q, scene.kv, graph.plan(scene.batch), rules)
        assert graph.replan(scene.batch)
        assert graph.replan(replace(scene.batch, host=None)) is not needs_lengths


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


SHARED = [case for case in PLANNED if case.shared and 1 in case.new]


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_reads_pages_in_common_once(backend: FlashInferBackend, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", 1)
    plan, counts = fake_flashinfer.Paged.set, list[int]()

    def counting(self: fake_flashinfer.Paged, arrays: list[torch.Tensor], *rest: object) -> None:
        counts.append(len(arrays[-1]))
        plan(self, arrays, *rest)

    monkeypatch.setattr(fake_flashinfer.Paged, "set", counting)
    scene = make_scene(case, torch.float32, CPU)
    assert error(scene.run(backend), scene.truth(), torch.float32) <= 1
    sharing = sum(new == 1 and past >= case.shared for new, past in zip(case.new, case.past, strict=True))
    needed = sum(-(-length // case.page_size) for new, length in zip(case.new, case.lengths, strict=True) if new)
    assert sum(counts) == needed - (sharing - 1) * (case.shared // case.page_size)


def test_a_step_that_shares_much_is_not_for_a_graph(
    backend: FlashInferBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(next(case for case in SHARED if set(case.new) == {1}), torch.float32, CPU)
    page_bytes = scene.kv.k[0].nbytes + scene.kv.v[0].nbytes
    spared = sum(past >= scene.case.shared for past in scene.case.past) - 1
    worth = spared * scene.case.shared // scene.case.page_size * page_bytes
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", worth)
    with pytest.raises(NotImplementedError):
        replay(scene, backend, DEVICE)
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", worth + 1)
    assert error(replay(scene, backend, DEVICE), scene.truth(), torch.float32) <= 1


def test_windows_are_read_row_by_row(backend: FlashInferBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", 1)
    scene = make_scene(Case("", [1, 1], [90, 80], page_size=8, shared=80), torch.float32, CPU)
    windowed = replace(scene, case=replace(scene.case, window=70))
    check_in_one_step(backend, scene, windowed, scene)


def test_what_does_not_fit_the_workspace_is_left_to_the_triton_kernels(backend: FlashInferBackend) -> None:
    """By what FlashInfer's scheduler allocates: float32 per head, padded tile, query row and dimension."""
    kind = importlib.import_module("sgl.kernels.flashinfer.attention").Kind
    llama = kind(32, 8, 128, 16, torch.bfloat16, 1.0, None, None)
    assert all(llama.fits(role) for role in ("decode", "short", "long", "prefix"))
    assert llama.fits("decode", 256, 256) and llama.fits("short", 64, 64 * 5)
    assert not llama.fits("short", 512, 512 * 5)
    many_queries = replace(llama, num_heads=71, num_kv_heads=1, head_dim=64)
    assert not many_queries.fits("prefix") and not many_queries.fits("decode", 256, 256)
    assert replace(llama, num_heads=8).fits("decode", 4096, 4096), "one head of a group needs no tensor cores"
    wide = replace(llama, num_kv_heads=1)
    assert wide.fits("decode") and not wide.fits("prefix")
    scene = make_scene(Case("", [1, 20], [20, 30], heads=48, kv_heads=1, dim=128), torch.float32, CPU)
    with pytest.raises(NotImplementedError):
        scene.run(backend)


def test_rows_of_latents_have_one_plan(backend: FlashInferBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens they have; those that read pages in common have two of their own."""
    monkeypatch.setattr("sgl.engine.attn.flashinfer.WORTH_BYTES", 1)
    plan, counts = fake_flashinfer.Paged.set, list[int]()

    def counting(self: fake_flashinfer.Paged, arrays: list[torch.Tensor], *rest: object) -> None:
        counts.append(len(arrays[0]) - 1)
        plan(self, arrays, *rest)

    monkeypatch.setattr(fake_flashinfer.Paged, "set", counting)
    apart = Case("", [1, 20, 0, 5, 1], [40, 3, 7, 9, 90], kv_heads=1, dim=80, latent_dim=64)
    for case, expected in ((apart, [4]), (replace(apart, past=[40, 3, 7, 9, 32], shared=32), [2, 1, 2])):
        counts.clear()
        scene = make_scene(case, torch.float32, CPU)
        assert error(scene.run(backend), scene.truth(), torch.float32) <= 1
        assert sorted(counts) == sorted(expected)


def test_plans_of_latents_have_room_for_so_many_works(backend: FlashInferBackend) -> None:
    """16,384: one for 64 query rows of a request (128 where they have more), and splits on every multiprocessor."""
    kind = importlib.import_module("sgl.kernels.flashinfer.attention").Kind
    deepseek = kind(128, 1, 576, 64, torch.bfloat16, 1.0, None, None, 512)
    assert deepseek.has_plan(np.array([8192])) and deepseek.has_plan(np.array([1] * 16000))
    assert not deepseek.has_plan(np.array([16384])) and not deepseek.has_plan(np.array([1] * 16200))
    lite = replace(deepseek, num_heads=16)
    assert lite.has_plan(np.array([4] * 16000)) and not lite.has_plan(np.array([4] * 16200))
    assert not lite.has_plan(np.array([131072])) and replace(lite, latent_dim=0).has_plan(np.array([131072]))
    scene = make_scene(Case("", [1100], [0], heads=2048, kv_heads=1, dim=2, latent_dim=1), torch.float32, CPU)
    meta = backend.plan(scene.batch)
    for run in (backend.run, graph_of(backend, scene).run):
        with pytest.raises(NotImplementedError):
            run(scene.q, scene.kv, meta, scene.rules)


def graph_of(backend: FlashInferBackend, scene: Scene) -> GraphBackend[Any]:
    graph = backend.graph_buffers(scene.batch)
    assert graph is not None
    return graph


def test_what_is_kept_for_plans_is_told_once() -> None:
    """By what FlashInfer's wrappers allocate: 8 MiB each, of one for every role of every kind of layers."""
    specs = [KVSpec("full", 2, 128, torch.bfloat16), KVSpec("window", 2, 128, torch.bfloat16, 7)]
    with pytest.MonkeyPatch.context() as patch:
        fake_flashinfer.install(patch)
        traits = importlib.import_module("sgl.engine.attn.flashinfer").FlashInferBackend(DEVICE, [*specs] * 3).traits
    assert (traits.plan_bytes, traits.graph_bytes) == (4 * 2 * 8 << 20, 2 * 8 << 20)
    assert traits.step_bytes == importlib.import_module("sgl.engine.attn.triton").SPLIT_BYTES


def test_warming_up_meets_every_role(backend: FlashInferBackend) -> None:
    role_of = importlib.import_module("sgl.engine.attn.parts").role_of
    rows = [plan.rows[0].num_tokens for plan in first_steps(1024, 16, samples=True)]
    assert {role_of(count) for count in rows} == {"decode", "short", "long"}
