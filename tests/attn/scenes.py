"""Requests over a paged cache full of NaN wherever nothing was stored, and what attention must answer, in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer, KVSpec
from sgl.engine.attn.cpu import CpuBackend
from sgl.kernels.ops.attention import Rules


@dataclass(frozen=True)
class Shape:
    """Rows of which ``past`` tokens are cached and ``new`` ones are computed.

    The first ``shared`` tokens of the rows in ``sharing`` are the same and in the same pages.
    """

    new: Sequence[int]
    past: Sequence[int]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    page_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    int8: bool = False
    latent_dim: int = 0  # how many numbers of a key are its value, 0: it has a value of its own
    sharing: Sequence[int] = ()
    shared: int = 0

    @property
    def lengths(self) -> list[int]:
        return [n + p for n, p in zip(self.new, self.past, strict=True)]


@dataclass
class Scene:
    shape: Shape
    q: Tensor
    keys: list[Tensor]  # as the cache holds them, of every row
    values: list[Tensor]
    sinks: Tensor | None
    cache: KVLayer
    batch: ForwardBatch
    rules: Rules = field(init=False)

    def __post_init__(self) -> None:
        self.rules = Rules(self.shape.dim**-0.5, self.shape.window, self.shape.softcap, self.sinks)

    def run(self, backend: CpuBackend) -> Tensor:
        return backend.run(self.q, self.cache, self.batch, self.rules)

    def run_alone(self, backend: CpuBackend, row: int, token: int) -> Tensor:
        """The answer to one token of a row, computed in a step of its own."""
        start = int(self.batch.cu_q[row])
        table = self.batch.page_table[0][row : row + 1].contiguous()
        alone = make_batch([1], [self.shape.past[row] + token], table, self.shape.page_size)
        return backend.run(self.q[start + token : start + token + 1], self.cache, alone, self.rules)[0]


def make_batch(new: Sequence[int], past: Sequence[int], table: Tensor, page_size: int) -> ForwardBatch:
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


def make_scene(backend: CpuBackend, shape: Shape, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    lengths, size = shape.lengths, shape.page_size
    counts = [-(-length // size) for length in lengths]
    pages = torch.randperm(sum(counts) + 3, generator=generator).int()
    table = torch.full((len(lengths), max(counts)), 10**6, dtype=torch.int32)
    keys, values = (
        [torch.randn(length, shape.kv_heads, shape.dim, generator=generator).bfloat16() for length in lengths]
        for _ in "kv"
    )
    for row, count in enumerate(counts):
        table[row, :count] = pages[sum(counts[:row]) :][:count]
    for row in shape.sharing[1:]:
        first = shape.sharing[0]
        table[row, : shape.shared // size] = table[first, : shape.shared // size]
        for tensors in (keys, values):
            tensors[row][: shape.shared] = tensors[first][: shape.shared]
    if shape.latent_dim:
        values = [key[..., : shape.latent_dim] for key in keys]
    cache = _poisoned_cache(shape, len(pages))
    backend.store(torch.cat(keys), torch.cat(values), cache, make_batch(lengths, [0] * len(lengths), table, size))
    if shape.int8:
        keys, values = ([_rounded(x) for x in tensors] for tensors in (keys, values))
        values = [key[..., : shape.latent_dim] for key in keys] if shape.latent_dim else values
    q = torch.randn(sum(shape.new), shape.heads, shape.dim, generator=generator).bfloat16()
    sinks = torch.randn(shape.heads, generator=generator) * 3 if shape.sinks else None
    return Scene(shape, q, keys, values, sinks, cache, make_batch(shape.new, shape.past, table, size))


def _poisoned_cache(shape: Shape, num_pages: int) -> KVLayer:
    def fill(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(size, 0x55 if dtype == torch.int8 else torch.nan, dtype=dtype)

    kind: Literal["full", "mla"] = "mla" if shape.latent_dim else "full"
    quantized = torch.int8 if shape.int8 else None
    spec = KVSpec(kind, shape.kv_heads, shape.dim, torch.bfloat16, None, quantized, shape.latent_dim)
    return KVLayer.make(spec, num_pages, shape.page_size, fill)


def _rounded(x: Tensor) -> Tensor:
    """x ``[n, Hkv, D]`` after a round trip through int8 with a scale per token and head."""
    peak = x.float().abs().amax(-1, keepdim=True)
    return (x.float() * (127 / peak)).round().double() * (peak.double() / 127)


def definition(scene: Scene, row: int) -> Tensor:
    """softmax(q k^T) v of one row in float64."""
    shape, rules = scene.shape, scene.rules
    start, stop = scene.batch.cu_q[row : row + 2].tolist()
    q = scene.q[start:stop].double().transpose(0, 1)
    group = shape.heads // shape.kv_heads
    k, v = (x[row].double().transpose(0, 1).repeat_interleave(group, 0) for x in (scene.keys, scene.values))
    query, key = scene.batch.positions[start:stop, None], torch.arange(k.shape[1])
    hidden = (key > query) | (key <= query - (rules.window or 10**9))
    scores = q @ k.transpose(1, 2) * rules.scale
    if rules.softcap is not None:
        scores = rules.softcap * (scores / rules.softcap).tanh()
    scores = scores.masked_fill(hidden, float("-inf"))
    if rules.sinks is not None:
        scores = torch.cat((scores, rules.sinks.double()[:, None, None].expand(*scores.shape[:2], 1)), -1)
    return (scores.softmax(-1)[..., : k.shape[1]] @ v).transpose(0, 1)


def random_shape(seed: int) -> Shape:
    """Odd sizes, single tokens, rows without any, page and block borders; about half of them share a prefix."""
    rng = random.Random(seed)
    kv_heads, size = rng.choice([1, 2, 3]), rng.choice([16, 32, 48, 64])
    num_rows = rng.randint(1, 7)
    new = [rng.choice([0, 1, 1, 1, 1, 2, 5, 17, 70]) for _ in range(num_rows)]
    new[0] = max(new[0], 1)
    past = [rng.choice([0, 1, 15, 16, 63, 64, 65, 130, 447, 511, 512, 600]) for _ in range(num_rows)]
    sharing = rng.sample(range(num_rows), rng.randint(0, num_rows))
    shared = rng.choice([64, 128, 200, 530]) // size * size
    lengths = [n + p for n, p in zip(new, past, strict=True)]
    shape = Shape(
        new,
        past,
        heads=kv_heads * rng.choice([1, 2, 3, 7, 8, 13]),
        kv_heads=kv_heads,
        dim=rng.choice([16, 64, 64, 80, 128, 256]),
        page_size=size,
        window=rng.choice([None, None, 1, 20, 64, 100]),
        softcap=rng.choice([None, None, 2.0]),
        sinks=rng.random() < 0.3,
        int8=rng.random() < 0.4,
        sharing=[row for row in sharing if lengths[row] >= shared],
        shared=shared,
    )
    return replace(shape, latent_dim=rng.choice([0, 0, shape.dim - 16]))
