"""The C++ attention against the definition in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sgl.engine.attn.batch import KVLayer, KVSpec
from sgl.engine.attn.choice import choose_backend
from sgl.engine.attn.cpu import CpuBackend, why_not
from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import CPU_ISAS, detect_isa, open_device
from sgl.engine.base.errors import ConfigError
from sgl.kernels.cpu import native
from sgl.kernels.registry import bind
from tests.attn.scenes import Scene, Shape, definition, make_batch, make_scene, random_shape

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

SHAPES = [
    Shape([1, 5, 17], [0, 3, 40]),
    Shape([1, 70, 3], [1500, 1000, 0], heads=6, kv_heads=3, dim=80, page_size=32, window=100),
    Shape([1, 1, 1], [15, 16, 1023], heads=14),
    Shape([130], [0], kv_heads=4, dim=128, window=33),
    Shape([33, 1], [1, 2047], heads=5, kv_heads=1, dim=256, page_size=48),
    Shape([1, 2, 30], [1100, 30, 700], heads=14, int8=True),
    Shape([1] * 9, [700 + 9 * i for i in range(9)], heads=14, sharing=range(9), shared=640),
    Shape([1, 1, 30], [900, 70, 15], heads=16, kv_heads=1, dim=576, latent_dim=512),
    Shape(
        [1] * 5 + [4], [600] * 6, heads=20, kv_heads=1, dim=80, latent_dim=64, int8=True, sharing=range(5), shared=576
    ),
    Shape([1, 40, 1, 9], [600] * 4, heads=16, kv_heads=1, int8=True, sharing=(3, 0, 1), shared=576, window=300),
]


@contextmanager
def running(threads: int, isa: str | None = None) -> Iterator[CpuBackend]:
    backend = CpuBackend()
    backend.library = native.library(isa or detect_isa())
    native.set_threads(backend.library, threads)
    try:
        yield backend
    finally:
        native.set_threads(backend.library, torch.get_num_threads())


def check(backend: CpuBackend, scene: Scene) -> None:
    """Close to the definition, and the same bits as every token by itself."""
    got = scene.run(backend)
    for row, num_new in enumerate(scene.shape.new):
        start = int(scene.batch.cu_q[row])
        wanted = definition(scene, row)
        torch.testing.assert_close(got[start : start + num_new].double(), wanted, atol=1e-2, rtol=1e-2)
        for token in sorted({0, num_new // 2, num_new - 1} & set(range(num_new))):
            assert torch.equal(scene.run_alone(backend, row, token), got[start + token])


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_equals_the_definition_and_ignores_batch_and_chunks(shape: Shape) -> None:
    backend = CpuBackend()
    check(backend, make_scene(backend, shape))


@pytest.mark.parametrize("seed", range(48))
def test_random_shapes_on_any_number_of_threads(seed: int) -> None:
    with running(threads=1 + seed % 8) as backend:
        check(backend, make_scene(backend, random_shape(seed), seed))


@pytest.mark.parametrize("isa", CPU_ISAS)
@pytest.mark.parametrize("int8", [False, True])
def test_every_instruction_set(isa: str, int8: bool) -> None:
    if CPU_ISAS.index(isa) > CPU_ISAS.index(detect_isa()):
        pytest.skip(f"this processor has no {isa}")
    with running(3, isa) as backend:
        shape = Shape([40, 1, 1], [20, 1100, 600], heads=14, int8=int8, softcap=5.0, sinks=True)
        check(backend, make_scene(backend, shape))
        check(backend, make_scene(backend, Shape([1] * 4, [80] * 4, dim=16, int8=int8, sharing=range(4), shared=64)))
        latents = Shape([1, 30], [130, 5], heads=8, kv_heads=1, dim=112, int8=int8, latent_dim=96)
        check(backend, make_scene(backend, latents))


def test_a_prefix_of_other_pages_with_the_same_tokens_changes_no_bit() -> None:
    backend = CpuBackend()
    shape = Shape([1] * 6, [300 + i for i in range(6)], heads=14, sharing=range(6), shared=256)
    shared = make_scene(backend, shape)
    got = shared.run(backend)
    for row in range(6):
        assert torch.equal(shared.run_alone(backend, row, 0), got[row])
    table, num_pages = shared.batch.page_table[0], shared.cache.k.shape[0]
    copies = (num_pages + torch.arange(5 * 16)).view(5, 16)
    originals = table[1:, :16].long()
    k, v = (torch.cat((pages, pages[originals.flatten()])) for pages in (shared.cache.k, shared.cache.v))
    table[1:, :16] = copies
    shared.cache = KVLayer(k, v)
    assert torch.equal(shared.run(backend), got)


def test_says_why_it_cannot_compute_a_layer() -> None:
    fits = KVSpec("full", 2, 64, torch.bfloat16)
    assert why_not([fits], 16) == ""
    assert "--page-size" in why_not([fits], 8)
    assert "bfloat16" in why_not([KVSpec("full", 2, 64, torch.float32)], 16)
    assert "dimensions" in why_not([KVSpec("full", 2, 20, torch.bfloat16)], 16)
    latents = KVSpec("mla", 1, 576, torch.bfloat16, latent_dim=512)
    assert why_not([latents], 16) == ""
    for head_dim, latent_dim in ((592, 512), (576, 500), (570, 512)):
        assert "latents (MLA)" in why_not([replace(latents, head_dim=head_dim, latent_dim=latent_dim)], 16)


def test_an_int8_cache_takes_less_memory_and_the_cpu_backend() -> None:
    full = KVSpec("full", 2, 64, torch.bfloat16)
    small = KVSpec("full", 2, 64, torch.bfloat16, quantized=torch.int8)
    assert (full.bytes_per_token, small.bytes_per_token) == (2 * 2 * 64 * 2, 2 * 2 * (64 + 4))
    kernels, device = bind("cpu", detect_isa(), torch.bfloat16), open_device("cpu")
    assert isinstance(choose_backend("auto", device, [small], 16, kernels), CpuBackend)
    for spec, page_size, words in (
        (KVSpec("full", 2, 64, torch.float32, quantized=torch.int8), 16, "bfloat16"),
        (small, 8, "--page-size"),
        (KVSpec("full", 2, 64, torch.bfloat16, quantized=torch.float8_e5m2), 16, "int8 only"),
    ):
        with pytest.raises(ConfigError, match="attention-backend cpu") as caught:
            choose_backend("cpu", device, [spec], page_size, kernels)
        assert words in caught.value.message and "torch_native" in caught.value.message
        assert isinstance(choose_backend("auto", device, [spec], page_size, kernels), TorchNativeBackend)


def test_an_int8_cache_hides_no_number_that_is_not_finite() -> None:
    backend = CpuBackend()
    scene = make_scene(backend, Shape([1, 1], [20, 20], int8=True))
    bad = torch.zeros(1, 2, 64).bfloat16()
    bad[0, 1, 5] = float("inf")
    backend.store(bad, bad, scene.cache, make_batch([1], [3], scene.batch.page_table[0][:1].contiguous(), 16))
    got = scene.run(backend)
    assert got[0, 2:].isnan().all() and got[0, :2].isfinite().all() and got[1].isfinite().all()
