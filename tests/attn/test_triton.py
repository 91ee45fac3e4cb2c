"""The Triton backend against the definition in float64, through Triton's interpreter or on a GPU."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from sgl.engine.attn.checks import CASES, Case, Scene, error, make_batch, make_scene, replay
from sgl.engine.attn.torch_native import TorchNativeBackend, rounded
from sgl.engine.base.device import CpuDevice
from sgl.kernels.registry import bind
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged

if TYPE_CHECKING:
    from sgl.engine.attn.triton import TritonBackend

triton = pytest.importorskip("triton")

DEVICE = CpuDevice()
CPU = torch.device("cpu")


@pytest.fixture
def backend() -> TritonBackend:
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled here: the tests marked gpu run them")
    from sgl.engine.attn.triton import TritonBackend

    return TritonBackend(DEVICE)


def stored(case: Case, dtype: torch.dtype) -> Scene:
    """A scene whose cache plain torch has filled: the interpreter takes long for every token."""
    scene = make_scene(case, dtype, CPU)
    native = TorchNativeBackend(DEVICE, bind("cpu", "generic", dtype))
    native.store(scene.k, scene.v, scene.kv, native.plan(scene.batch))
    return scene


def attend(backend: TritonBackend, scene: Scene) -> torch.Tensor:
    return backend.run(scene.q, scene.kv, backend.plan(scene.batch), scene.rules)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_definition(backend: TritonBackend, case: Case) -> None:
    dtype = (torch.float32, torch.float16, torch.bfloat16)[len(case.name) % 3]
    scene = stored(case, dtype)
    assert error(attend(backend, scene), scene.truth(), dtype) <= 1


@pytest.mark.parametrize("new", [[1, 30, 3, 1], [1, 1]], ids=["mixed", "decode"])
def test_a_row_answers_the_same_in_any_batch(backend: TritonBackend, new: list[int]) -> None:
    case = Case("", new, [70, 64, 300, 5][: len(new)], heads=2, kv_heads=1, window=50)
    scene = stored(case, torch.float16)
    got = attend(backend, scene)
    for row, start in enumerate(scene.batch.cu_q[:-1].tolist()):
        assert torch.equal(attend(backend, scene.alone(row)), got[start : start + new[row]])


@pytest.mark.parametrize(
    "case",
    [
        Case("one token", [1] * 5, [600, 530, 20, 700, 512], heads=8, kv_heads=2, shared=512),
        Case("drafts", [2] * 3, [300, 290, 280], heads=4, kv_heads=1, page_size=48, shared=288, quantized=torch.int8),
        Case("more than fit a tile", [1] * 4, [270, 300, 280, 260], heads=7, kv_heads=1, shared=256),
    ],
    ids=lambda case: case.name,
)
def test_a_prefix_in_common_changes_no_bit(backend: TritonBackend, case: Case) -> None:
    scene = stored(case, torch.float16)
    got = attend(backend, scene)
    assert error(got, scene.truth(), torch.float16) <= 1
    for row, start in enumerate(scene.batch.cu_q[:-1].tolist()):
        assert torch.equal(attend(backend, scene.alone(row)), got[start : start + case.new[row]])


@pytest.mark.parametrize(
    "case",
    [
        Case("latents", [1] * 6 + [3], [40, 300, 3, 0, 17, 520, 9], heads=20, kv_heads=1, dim=40, latent_dim=32),
        Case(
            "some tokens to a tile", [3, 1, 5, 2, 4, 1, 7, 3, 2], [9, 300, 2, 0, 31, 4, 8, 270, 1], heads=4, kv_heads=1
        ),
    ],
    ids=lambda case: case.name,
)
def test_less_room_for_splits_changes_no_bit(
    backend: TritonBackend, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = stored(replace(case, sinks=True), torch.float16)
    whole = attend(backend, scene)
    assert error(whole, scene.truth(), torch.float16) <= 1
    monkeypatch.setattr("sgl.engine.attn.triton.SPLIT_BYTES", 1)
    assert torch.equal(attend(backend, scene), whole)


@pytest.mark.parametrize("seed", range(6))
def test_finds_who_begins_alike(backend: TritonBackend, seed: int) -> None:
    """Against lists of pages: how many whole splits a row has in common with the first one that begins as it does."""
    from sgl.kernels.triton.attention_shared import find_sharing

    rng, splits, page_size, most = random.Random(seed), 4, (1, 16, 48)[seed % 3], 4
    new = [rng.choice([0, 1, 1, 2, 4, 5]) for _ in range(rng.choice([3, 9, 140]))]
    lengths = [count + rng.choice([0, 200, 256, 600, 1000, 1030, 1500]) for count in new]
    heads = [rng.sample(range(4000), 1600 // page_size + 1) for _ in range(3)]
    tables = []
    for row, _ in enumerate(new):
        head, kept = rng.choice(heads), rng.choice([0, 300, 700, 2000]) // page_size
        tables.append(head[:kept] + [10_000 + 2000 * row + n for n in range(len(head) - min(kept, len(head)))])
    cu_q, seq_lens = torch.tensor([0, *new]).cumsum(0).int(), torch.tensor(lengths).int()
    found = find_sharing(torch.tensor(tables).int(), cu_q, seq_lens, page_size, splits, most, cu_q)
    wanted = begins_alike(tables, new, lengths, page_size, splits, most)
    order = found.order.tolist()
    for row, (shared, leader) in enumerate(wanted):
        assert found.shares[row, 0].item() == shared and found.shares[row, 3].item() == leader
        if leader >= 0:
            place, rank = found.shares[row, 1:3].tolist()
            assert order[place] == row and order[place - rank] == leader
            assert all(wanted[other][1] == leader for other in order[place - rank : place])
            assert [wanted[other][0] for other in order[place - rank : place]] >= [shared] * rank
    assert sorted(row for row in order if row >= 0) == [row for row, (_, leader) in enumerate(wanted) if leader >= 0]


def begins_alike(
    tables: list[list[int]], new: list[int], lengths: list[int], page_size: int, splits: int, most: int
) -> list[tuple[int, int]]:
    """Shared splits and leader of every row."""
    sizes = [next(256 << n for n in range(20) if (256 << n) * splits >= length) for length in lengths]
    pasts = [length - count for count, length in zip(new, lengths, strict=True)]
    takes = [0 < count <= most and past >= size for count, past, size in zip(new, pasts, sizes, strict=True)]
    rows = range(len(new))
    leaders, shared = [-1] * len(new), [0] * len(new)
    for row in rows:
        if takes[row]:
            same = (o for o in rows if takes[o] and sizes[o] == sizes[row] and tables[o][0] == tables[row][0])
            leaders[row] = leader = next(same)
            pairs = zip(tables[row], tables[leader], strict=True)
            common = next((n for n, (a, b) in enumerate(pairs) if a != b), len(tables[row])) * page_size
            shared[row] = min(pasts[row], pasts[leader], common) // sizes[row]
    for row in rows:
        if leaders[row] == row:
            shared[row] = max([shared[o] for o in rows if o != row and leaders[o] == row], default=0)
    return list(zip(shared, leaders, strict=True))


def test_verification_answers_as_decoding_does(backend: TritonBackend) -> None:
    """Drafts in a row do not change what a token before them sees, bit by bit."""
    case = Case("", [4], [254], heads=2, kv_heads=1)
    scene = stored(case, torch.float16)
    got = attend(backend, scene)
    for token in range(4):
        one = replace(scene, case=replace(case, new=[1], past=[254 + token]), q=scene.q[token : token + 1])
        one.batch = make_batch([1], [254 + token], scene.batch.page_table[0], scene.kv)
        assert torch.equal(attend(backend, one)[0], got[token])


@pytest.mark.parametrize("quantized", [None, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_stores_keys_and_values(backend: TritonBackend, dtype: torch.dtype, quantized: torch.dtype | None) -> None:
    scene = make_scene(Case("", [3], [6], kv_heads=3, heads=3, dim=20, page_size=4, quantized=quantized), dtype, CPU)
    wide = torch.stack((scene.k, scene.v), 1).unbind(1)  # not contiguous, as views of one product are not
    wide[0][1, 2] = 0
    backend.store(*wide, scene.kv, backend.plan(scene.batch))
    at = scene.batch.out_loc[0] // 4, scene.batch.out_loc[0] % 4
    for x, pages, scales in ((wide[0], scene.kv.k, scene.kv.k_scale), (wide[1], scene.kv.v, scene.kv.v_scale)):
        kept = pages.transpose(1, 2)[at]
        if quantized is None:
            assert torch.equal(kept, x)
            continue
        values, scale = rounded(x, quantized)
        torch.testing.assert_close(scales.transpose(1, 2)[at], scale)
        # The interpreter halves what it rounds up to a power of two in 8-bit floats.
        trusted = (values.float().abs().log2() % 1 > 0) | (quantized == torch.int8)
        apart = (kept.float() - values.float()).abs()[trusted]
        assert (apart > 0).float().mean() < 0.05, "but for ties"
        step = {torch.int8: 1.0, torch.float8_e4m3fn: 32.0, torch.float8_e5m2: 8192.0}[quantized]
        assert apart.max() <= step


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_numbers_that_are_not_finite_show_in_a_quantised_cache(backend: TritonBackend) -> None:
    scene = make_scene(Case("", [2], [0], heads=2, kv_heads=2, dim=16, quantized=torch.int8), torch.float32, CPU)
    scene.k[0, 1, 3], scene.v[1, 0, 2] = float("inf"), float("nan")
    backend.store(scene.k, scene.v, scene.kv, backend.plan(scene.batch))
    at = scene.batch.out_loc[0]
    k_scale, v_scale = (x.transpose(1, 2)[at // 16, at % 16].isfinite() for x in (scene.kv.k_scale, scene.kv.v_scale))
    assert k_scale.tolist() == [[True, False], [True, True]] and v_scale.tolist() == [[True, True], [False, True]]


GRAPHS = (
    Case("decode", [1, 1], [0, 15], heads=1, kv_heads=1),
    Case("verification", [5, 5], [252, 7], heads=1, kv_heads=1, page_size=32),
    Case("a prefix in common", [1, 1, 1], [300, 290, 270], heads=2, kv_heads=1, shared=256),
    Case("latents", [1, 1], [31, 7], heads=2, kv_heads=1, dim=24, latent_dim=16),
)


@pytest.mark.parametrize("case", GRAPHS, ids=lambda case: case.name)
def test_a_graph_answers_as_a_step_does(backend: TritonBackend, case: Case) -> None:
    scene = make_scene(case, torch.float32, CPU)
    assert error(replay(scene, backend, DEVICE), scene.truth(), torch.float32) <= 1


def test_a_model_answers_as_on_plain_torch(
    backend: TritonBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family with windows and softcaps, its prompt in chunks beside another that decodes."""
    paged = Paged(make_checkpoint("gemma2", tmp_path, tokenizer=False), torch.float32)
    prompts = [[5, 9, 2], [(7 * i) % 100 for i in range(14)]]
    wanted = paged.greedy(prompts, 3, chunk=10)
    monkeypatch.setattr(paged, "_backend", backend)
    with torch.inference_mode():
        assert paged.greedy(prompts, 3, chunk=10) == wanted


@pytest.mark.parametrize(
    "cases",
    [
        ["decode, sinks", "prefill, window", "latents, mixed", "decode, a prefix in common"],
        pytest.param([], marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(900)
def test_compiles_for_sm90(cases: list[str]) -> None:
    """In a process of its own, since Triton interprets in this one; without cases it compiles them all. What needs more
    shared memory than there is ends it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.attn.offline", *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(kernel in done.stdout for kernel in ("_store", "_leader", "_rank", "_split", "_merge", "_prefill"))
    spilled = [line for line in done.stdout.splitlines() if int(re.findall(r"(\d+) spilled", line)[0]) > 128]
    assert not spilled, "registers of a thread go to memory:\n" + "\n".join(spilled)


@pytest.mark.gpu
def test_all_cases_on_the_gpu() -> None:
    from sgl.engine.attn.checks import parity

    failures = []
    for check in parity(torch.device("cuda")):
        try:
            worst = check.run()
        except NotImplementedError:
            continue
        if worst > 1:
            failures.append(f"{check.name}: {worst:.2f}")
    assert not failures, "\n".join(failures)
