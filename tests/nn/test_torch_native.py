"""The torch attention backend against attention written out in float64, over randomly paged rows."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import CpuDevice
from sgl.kernels.ops.attention import Rules
from sgl.kernels.registry import bind

HEADS, KV_HEADS, DIM, SCALE = 6, 2, 16, 0.3


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q ``[n, H, D]`` at the end of k and v ``[S, Hkv, D]``, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    query = torch.arange(len(k) - len(q), len(k))[:, None]
    key = torch.arange(len(k))
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1)],
        [(1, 40), (1, 41), (1, 7)],
        [(1, 300), (1, 20), (1, 150)],
        [(9, 9), (1, 30), (4, 33), (1, 2), (2, 2), (16, 16)],
    ],
    ids=["one", "one bucket", "buckets", "mixed"],
)
def test_matches_float64(rows: list[tuple[int, int]], page_size: int, window: int | None, dtype: torch.dtype) -> None:
    """Rows are (tokens in this step, tokens in all)."""
    generator = torch.Generator().manual_seed(sum(q + s for q, s in rows))
    num_pages = sum(-(-s // page_size) for _, s in rows) + 3
    free = random.Random(1).sample(range(num_pages), num_pages)
    kv = KVLayer(*(torch.full((num_pages, KV_HEADS, page_size, DIM), torch.nan, dtype=dtype) for _ in "kv"))
    pages = [[free.pop() for _ in range(-(-s // page_size))] for _, s in rows]
    past = [[torch.randn(s, KV_HEADS, DIM, generator=generator).to(dtype) for _ in "kv"] for _, s in rows]
    queries = [torch.randn(q, HEADS, DIM, generator=generator).to(dtype) for q, _ in rows]
    backend = TorchNativeBackend(CpuDevice(), bind("cpu", "generic", dtype))

    def step(lens: list[tuple[int, int]], q: list[Tensor]) -> list[Tensor]:
        width = max(map(len, pages))
        batch = ForwardBatch(
            input_ids=torch.empty(0),
            positions=torch.empty(0),
            cu_q=torch.tensor([0, *accumulate(n for n, _ in lens)]),
            seq_lens=torch.tensor([s for _, s in lens], dtype=torch.int32),
            slots=torch.empty(0),
            out_loc=(
                torch.tensor(
                    [
                        row[p // page_size] * page_size + p % page_size
                        for row, (n, s) in zip(pages, lens, strict=True)
                        for p in range(s - n, s)
                    ]
                ),
            ),
            page_table=(torch.tensor([row + [-1] * (width - len(row)) for row in pages], dtype=torch.int32),),
            logit_indices=torch.empty(0),
            q_lens=tuple(n for n, _ in lens),
        )
        meta = backend.plan(batch)
        new = [torch.cat([row[i][s - n : s] for row, (n, s) in zip(past, lens, strict=True)]) for i in (0, 1)]
        backend.store(new[0], new[1], kv, meta)
        return list(backend.run(torch.cat(q), kv, meta, Rules(SCALE, window)).split([n for n, _ in lens]))

    if any(s > q for q, s in rows):
        before = [(max(s - q, 1), max(s - q, 1)) for q, s in rows]
        step(before, [torch.zeros(n, HEADS, DIM, dtype=dtype) for n, _ in before])
    got = step(rows, queries)
    tolerance = 2e-6 if dtype is torch.float32 else 2e-2
    for out, q, (k, v) in zip(got, queries, past, strict=True):
        assert (out.double() - attend(q, k, v, window)).abs().max() < tolerance
