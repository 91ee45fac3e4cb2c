"""The C++ attention against the definition in float64, on caches full of NaN wherever nothing was stored."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.attn.cpu import CpuBackend, why_not
from sgl.engine.base.device import CPU_ISAS, detect_isa
from sgl.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")


@dataclass
class Scene:
    """Rows of which ``past`` tokens are cached and ``new`` ones are computed."""

    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    cache: KVLayer
    batch: ForwardBatch


def make_batch(new: list[int], past: list[int], table: Tensor, page_size: int) -> ForwardBatch:
    positions = torch.cat([torch.arange(p, p + n) for n, p in zip(new, past, strict=True)])
    row_of = torch.repeat_interleave(torch.arange(len(new)), torch.tensor(new))
    return ForwardBatch(
        input_ids=torch.zeros_like(positions),
        positions=positions,
        cu_q=torch.tensor([0, *new]).cumsum(0).int(),
        seq_lens=torch.tensor([n + p for n, p in zip(new, past, strict=True)]).int(),
        slots=torch.arange(len(new)),
        out_loc=(table[row_of, positions // page_size].long() * page_size + positions % page_size,),
        page_table=(table,),
        logit_indices=torch.zeros(0, dtype=torch.long),
        q_lens=tuple(new),
    )


def make_scene(
    backend: CpuBackend, new: list[int], past: list[int], heads: int, kv_heads: int, dim: int, page_size: int
) -> Scene:
    generator = torch.Generator().manual_seed(len(new) + dim)
    lengths = [n + p for n, p in zip(new, past, strict=True)]
    counts = [-(-length // page_size) for length in lengths]
    pages = torch.randperm(sum(counts) + 3, generator=generator).int()
    table = torch.full((len(new), max(counts)), 10**6, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = pages[sum(counts[:row]) :][:count]
    poison = torch.full((len(pages), kv_heads, page_size, dim), float("nan"), dtype=torch.bfloat16)
    cache = KVLayer(poison.clone(), poison.clone())
    keys = [torch.randn(length, kv_heads, dim, generator=generator).bfloat16() for length in lengths]
    values = [torch.randn(length, kv_heads, dim, generator=generator).bfloat16() for length in lengths]
    whole = make_batch(lengths, [0] * len(new), table, page_size)
    backend.store(torch.cat(keys), torch.cat(values), cache, whole)
    q = torch.randn(sum(new), heads, dim, generator=generator).bfloat16()
    return Scene(q, keys, values, cache, make_batch(new, past, table, page_size))


def definition(scene: Scene, row: int, scale: float, window: int | None) -> Tensor:
    """softmax(q k^T) v of one row in float64."""
    start, stop = scene.batch.cu_q[row : row + 2].tolist()
    q = scene.q[start:stop].double().transpose(0, 1)
    group = q.shape[0] // scene.cache.k.shape[1]
    k, v = (x[row].double().transpose(0, 1).repeat_interleave(group, 0) for x in (scene.keys, scene.values))
    query, key = scene.batch.positions[start:stop, None], torch.arange(k.shape[1])
    hidden = (key > query) | (key <= query - (window or 10**9))
    return ((q @ k.transpose(1, 2) * scale).masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1)


SHAPES = [
    ([1, 5, 17], [0, 3, 40], 4, 2, 64, 16, None),
    ([1, 70, 3], [1500, 1000, 0], 6, 3, 80, 32, 100),
    ([1, 1, 1], [15, 16, 1023], 14, 2, 64, 16, None),
    ([130], [0], 4, 4, 128, 16, 33),
    ([33, 1], [1, 2047], 5, 1, 256, 48, None),
]


@pytest.mark.parametrize(("new", "past", "heads", "kv_heads", "dim", "page_size", "window"), SHAPES)
def test_equals_the_definition_and_ignores_batch_and_chunks(
    new: list[int], past: list[int], heads: int, kv_heads: int, dim: int, page_size: int, window: int | None
) -> None:
    backend = CpuBackend()
    scene = make_scene(backend, new, past, heads, kv_heads, dim, page_size)
    got = backend.run(scene.q, scene.cache, scene.batch, dim**-0.5, window)
    for row, (num_new, num_past) in enumerate(zip(new, past, strict=True)):
        start = int(scene.batch.cu_q[row])
        wanted = definition(scene, row, dim**-0.5, window)
        torch.testing.assert_close(got[start : start + num_new].double(), wanted, atol=1e-2, rtol=1e-2)
        for token in {0, num_new // 2, num_new - 1}:
            table = scene.batch.page_table[0][row : row + 1].contiguous()
            alone = make_batch([1], [num_past + token], table, page_size)
            q = scene.q[start + token : start + token + 1]
            assert torch.equal(backend.run(q, scene.cache, alone, dim**-0.5, window)[0], got[start + token])


@pytest.mark.parametrize("isa", CPU_ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_and_number_of_threads(isa: str, threads: int) -> None:
    if CPU_ISAS.index(isa) > CPU_ISAS.index(detect_isa()):
        pytest.skip(f"this processor has no {isa}")
    backend = CpuBackend()
    backend.library = native.library(isa)
    native.set_threads(backend.library, threads)
    try:
        scene = make_scene(backend, [40, 1], [20, 1100], 6, 2, 64, 16)
        got = backend.run(scene.q, scene.cache, scene.batch, 0.125, None)
    finally:
        native.set_threads(backend.library, torch.get_num_threads())
    wanted = torch.cat([definition(scene, row, 0.125, None) for row in range(2)])
    torch.testing.assert_close(got.double(), wanted, atol=1e-2, rtol=1e-2)


def test_says_why_it_cannot_compute_a_layer() -> None:
    fits = KVSpec("full", 2, 64, torch.bfloat16)
    assert why_not([fits], 16) == ""
    assert "--page-size" in why_not([fits], 8)
    assert "bfloat16" in why_not([KVSpec("full", 2, 64, torch.float32)], 16)
    assert "dimensions" in why_not([KVSpec("full", 2, 20, torch.bfloat16)], 16)
