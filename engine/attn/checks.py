"""How far attention backends are from the definition in float64, on random requests; needs no test framework.

The cache is full of NaN wherever no token of a request lies, so that what is read there shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import ForwardBatch, HostRows, KVLayer, KVSpec
from sgl.engine.attn.choice import CANDIDATES, Wanted
from sgl.engine.attn.torch_native import rounded
from sgl.engine.base.device import Device, open_device
from sgl.kernels.ops.attention import Rules
from sgl.kernels.registry import bind, dtype_name

# Relative to the largest value of the answer: a few units in the last place of each dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of which ``past`` tokens are cached and ``new`` ones are computed."""

    name: str
    new: Sequence[int]
    past: Sequence[int]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    page_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    quantized: torch.dtype | None = None
    shared: int = 0  # how many tokens rows begin with that lie in the first one's pages, if they have cached so many
    latent_dim: int = 0  # how many numbers of a key are its value, 0: it has a value of its own

    @property
    def lengths(self) -> list[int]:
        return [n + p for n, p in zip(self.new, self.past, strict=True)]

    def spec(self, dtype: torch.dtype) -> KVSpec:
        kind: Literal["full", "window", "mla"] = "full" if self.window is None else "window"
        kind = "mla" if self.latent_dim else kind
        return KVSpec(kind, self.kv_heads, self.dim, dtype, self.window, self.quantized, self.latent_dim)


CASES = (
    Case("decode", [1, 1, 1], [0, 15, 300]),
    Case("decode, 7 heads of a group", [1, 1], [31, 700], heads=7, kv_heads=1, page_size=1),
    Case("decode, one head", [1, 1], [40, 2000], heads=1, kv_heads=1, dim=128, page_size=64),
    Case("decode, odd heads and pages", [1, 1], [255, 256], heads=3, kv_heads=1, dim=80, page_size=48),
    Case("decode, window, softcap", [1, 1], [10, 700], heads=2, kv_heads=1, window=100, softcap=3.0),
    Case("decode, sinks", [1, 1], [5, 600], heads=2, kv_heads=1, dim=32, sinks=True),
    Case("verification", [5, 5], [252, 7], heads=4, kv_heads=1, page_size=32),
    Case("verification, window", [3, 2], [260, 40], heads=2, kv_heads=1, window=20, sinks=True),
    Case("prefill", [70, 130], [0, 0], heads=8),
    Case("prefill of one head", [40], [0], heads=1, kv_heads=1, dim=128),
    Case("prefill behind a prefix", [33, 100], [1, 250], heads=6, dim=128, page_size=8),
    Case("prefill, heads of 80", [50], [20], heads=10, dim=80, page_size=3),
    Case("prefill, window", [90, 20], [200, 5], dim=128, window=33),
    Case("prefill, softcap", [60], [30], softcap=2.0),
    Case("prefill, sinks", [60], [30], window=16, sinks=True),
    Case("mixed", [1, 40, 2, 1, 9], [130, 64, 15, 0, 300], heads=2, kv_heads=1, dim=128),
    Case("rows without tokens", [0, 1, 0, 30], [10, 20, 0, 3]),
    Case("decode, a prefix in common", [1] * 5, [600, 530, 20, 700, 512], kv_heads=4, shared=512),
    Case("verification, a prefix in common", [3, 2, 30], [300, 290, 280], heads=2, kv_heads=1, shared=272, sinks=True),
    Case("mixed, a prefix in common", [1, 20, 1, 1, 5], [40, 50, 60, 3, 48], page_size=8, shared=40),
    Case("latents, a prefix in common", [1, 1, 1], [50, 70, 49], heads=2, kv_heads=1, dim=48, latent_dim=32, shared=48),
    Case("128 heads, a prefix in common", [1] * 2, [40, 33], heads=128, kv_heads=8, dim=128, shared=32),
    Case("latents of 128 heads, a prefix in common", [1] * 2, [40, 33], 128, 1, 576, latent_dim=512, shared=32),
    Case("a group that no tile has room for", [1, 9], [30, 4], heads=144, dim=256),
    Case("latents, decode", [1, 1], [40, 300], heads=4, kv_heads=1, dim=80, latent_dim=64),
    Case("latents, decode, odd sizes", [1, 1], [31, 270], heads=20, kv_heads=1, dim=60, page_size=3, latent_dim=40),
    Case("latents, verification", [3, 3], [254, 7], heads=2, kv_heads=1, dim=48, page_size=32, latent_dim=32),
    Case("latents, mixed", [1, 40, 9], [130, 5, 0], heads=6, kv_heads=1, dim=80, latent_dim=64),
    Case("latents, int8 cache", [1, 20], [90, 30], heads=2, kv_heads=1, dim=48, quantized=torch.int8, latent_dim=32),
    Case("latents of 512", [1, 10], [40, 20], heads=32, kv_heads=1, dim=576, page_size=64, latent_dim=512),
    *(
        Case(f"mixed, {dtype_name(dtype)} cache", [1, 30], [90, 100], heads=2, kv_heads=1, quantized=dtype)
        for dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
    ),
)

LARGE_CASES = (
    Case("long decode", [1] * 4, [8191, 40000, 3, 16384], heads=32, kv_heads=8, dim=128),
    Case("large batch", [1] * 64, list(range(64, 2112, 32)), heads=14, kv_heads=2),
    Case("many verifications", [4] * 16, list(range(0, 4000, 250)), heads=32, kv_heads=8, dim=128),
    Case("long prefill", [2048, 777], [0, 4000], heads=32, kv_heads=8, dim=128),
    Case("long prefill, window", [3000], [1000], heads=8, kv_heads=4, dim=256, window=1024, softcap=50.0),
    Case("a long prefix in common", [1] * 32, list(range(4096, 6144, 64)), heads=32, kv_heads=8, dim=128, shared=4096),
    Case("a long prefix, mixed", [1] * 32 + [40, 3], [4200] * 34, heads=32, kv_heads=8, dim=128, shared=4096),
    Case("a long prefix, latents", [1] * 64, [4200] * 64, heads=16, kv_heads=1, dim=576, latent_dim=512, shared=4096),
    Case("long decode, latents", [1] * 4, [8191, 40000, 3, 16384], heads=128, kv_heads=1, dim=576, latent_dim=512),
    Case("large batch, latents", [1] * 64, list(range(64, 2112, 32)), heads=16, kv_heads=1, dim=576, latent_dim=512),
    Case("long prefill, latents", [1024, 333], [0, 2000], heads=128, kv_heads=1, dim=576, latent_dim=512),
    Case("long fp8 decode", [1] * 3, [5000, 70, 900], heads=16, dim=128, quantized=torch.float8_e4m3fn),
)
"""For GPUs only: sizes at which a kernel's paths differ from the small ones."""


@dataclass
class Scene:
    case: Case
    q: Tensor
    k: Tensor  # [T, Hkv, D], what this step stores
    v: Tensor
    keys: list[Tensor]  # float64, of every row, as the cache holds them when the step's own are stored
    values: list[Tensor]
    sinks: Tensor | None
    kv: KVLayer
    batch: ForwardBatch

    @property
    def rules(self) -> Rules:
        return Rules(self.case.dim**-0.5, self.case.window, self.case.softcap, self.sinks)

    def run(self, backend: AttentionBackend[Any]) -> Tensor:
        meta = backend.plan(self.batch)
        backend.store(self.k, self.v, self.kv, meta)
        return backend.run(self.q, self.kv, meta, self.rules)

    def alone(self, row: int) -> Scene:
        """One row in a step of its own, over the same cache."""
        start, stop = self.batch.cu_q[row : row + 2].tolist()
        batch = make_batch([stop - start], [self.case.past[row]], self.batch.page_table[0][row : row + 1], self.kv)
        part = slice(start, stop)
        case = replace(self.case, new=[stop - start], past=[self.case.past[row]])
        return Scene(
            *(case, self.q[part], self.k[part], self.v[part], [self.keys[row]], [self.values[row]]),
            *(self.sinks, self.kv, batch),
        )

    def truth(self) -> Tensor:
        """softmax(q k^T) v of every row in float64."""
        rows = zip(torch.split(self.q.double(), list(self.case.new)), self.keys, self.values, strict=True)
        return torch.cat([self._row(*row) for row in rows])

    def _row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rules = self.rules
        k, v = (x.to(q.device).transpose(0, 1) for x in (k, v))  # [Hkv, S, D]
        shape, group = (self.case.heads, len(q), k.shape[1]), self.case.heads // self.case.kv_heads
        key = torch.arange(k.shape[1], device=q.device)
        query = key[len(key) - len(q) :, None]
        hidden = (key > query) | (key <= query - (rules.window or 1 << 60))
        rows = q.transpose(0, 1).reshape(len(k), group * len(q), q.shape[2])  # all heads of a KV head
        scores = (rows @ k.transpose(1, 2)).view(shape) * rules.scale
        if rules.softcap is not None:
            scores = rules.softcap * (scores / rules.softcap).tanh()
        scores = scores.masked_fill(hidden, float("-inf"))
        if rules.sinks is not None:
            sink = rules.sinks.double()[:, None, None].expand(*scores.shape[:2], 1)
            scores = torch.cat((scores, sink), -1)
        weights: Tensor = scores.softmax(-1)[..., : k.shape[1]]
        answer = weights.reshape(len(v), group * len(q), shape[2]) @ v
        return answer.view(*shape[:2], v.shape[2]).transpose(0, 1)


def make_batch(new: Sequence[int], past: Sequence[int], table: Tensor, kv: KVLayer) -> ForwardBatch:
    device, page_size = table.device, kv.page_size
    row = torch.repeat_interleave(torch.arange(len(new)), torch.tensor(new)).to(device)
    positions = torch.cat([torch.arange(p, p + n) for n, p in zip(new, past, strict=True)]).to(device)
    seq_lens = np.add(new, past)
    return ForwardBatch(
        input_ids=torch.zeros_like(positions),
        positions=positions,
        cu_q=torch.tensor([0, *new]).cumsum(0).int().to(device),
        seq_lens=torch.from_numpy(seq_lens).int().to(device),
        slots=torch.arange(len(new), device=device),
        out_loc=(table[row, positions // page_size].long() * page_size + positions % page_size,),
        page_table=(table,),
        logit_indices=torch.zeros(0, dtype=torch.long, device=device),
        q_lens=tuple(new),
        host=HostRows(seq_lens, np.arange(len(new)), (table.cpu().numpy(),)),
    )


def make_scene(case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0, clean: bool = False) -> Scene:
    """Random requests.

    Args:
        clean: pages of requests hold zeros behind their tokens; plain torch keeps them so while it fills them.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths, size = case.lengths, case.page_size
    counts = [-(-length // size) for length in lengths]
    pages = torch.randperm(sum(counts) + 3, generator=generator).int()
    table = torch.full((len(lengths), max(counts)), 10**6, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = pages[sum(counts[:row]) :][:count]
    k, v = ([torch.randn(n, case.kv_heads, case.dim, generator=generator).to(dtype) for n in lengths] for _ in "kv")
    v = [x[..., : case.latent_dim] for x in k] if case.latent_dim else v
    for row, past in enumerate(case.past):
        if case.shared and past >= case.shared:
            table[row, : case.shared // size] = table[0, : case.shared // size]
            for rows in (k, v):
                rows[row][: case.shared] = rows[0][: case.shared]
    q = torch.randn(sum(case.new), case.heads, case.dim, generator=generator).to(dtype)
    sinks = torch.randn(case.heads, generator=generator) * 3 if case.sinks else None
    kv = _poisoned(case, dtype, len(pages))
    places = make_batch(case.past, [0] * len(lengths), table, kv).out_loc[0]
    for rows, (kept, scales) in zip((k, v), kv.parts, strict=False):
        if clean:
            (kept if scales is None else scales)[pages[: sum(counts)].long()] = 0
        _put(torch.cat([x[:past] for x, past in zip(rows, case.past, strict=True)]), kept, scales, places)
    new_k, new_v = (torch.cat([x[past:] for x, past in zip(rows, case.past, strict=True)]) for rows in (k, v))
    return Scene(
        case=case,
        q=q.to(device),
        k=new_k.to(device),
        v=new_v.to(device),
        keys=[_kept(x, case.quantized) for x in k],
        values=[_kept(x, case.quantized)[..., : case.latent_dim or None] for x in (k if case.latent_dim else v)],
        sinks=None if sinks is None else sinks.to(device),
        kv=_on(device, kv),
        batch=make_batch(case.new, case.past, table.to(device), kv),
    )


def _poisoned(case: Case, dtype: torch.dtype, num_pages: int) -> KVLayer:
    def fill(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype.itemsize == 1:
            return torch.full(shape, 0x55, dtype=torch.int8).view(dtype)
        return torch.full(shape, torch.nan, dtype=dtype)

    return KVLayer.make(case.spec(dtype), num_pages, case.page_size, fill)


def _on(device: torch.device, kv: KVLayer) -> KVLayer:
    """The same pages there; values that are parts of keys stay so."""
    k, k_scale = kv.k.to(device), None if kv.k_scale is None else kv.k_scale.to(device)
    if kv.is_latent:
        return KVLayer(k, k[..., : kv.v.shape[3]], kv.group, k_scale, k_scale)
    return KVLayer(k, kv.v.to(device), kv.group, k_scale, None if kv.v_scale is None else kv.v_scale.to(device))


def _put(x: Tensor, pages: Tensor, scales: Tensor | None, places: Tensor) -> None:
    at = (places // pages.shape[2], places % pages.shape[2])
    if scales is not None:
        x, scale = rounded(x, pages.dtype)
        scales.transpose(1, 2).index_put_(at, scale)
        x, pages = x.view(torch.int8), pages.view(torch.int8)
    pages.transpose(1, 2).index_put_(at, x)


def _kept(x: Tensor, quantized: torch.dtype | None) -> Tensor:
    """x in float64 as the cache holds it."""
    if quantized is None:
        return x.double()
    values, scale = rounded(x, quantized)
    return values.double() * scale.double()[..., None]


@dataclass(frozen=True, slots=True)
class Check:
    """One case of one backend in one dtype."""

    backend: str
    case: Case
    dtype: torch.dtype
    device: Device
    seed: int

    @property
    def name(self) -> str:
        return f"attention-{self.backend}-{self.case.name}-{dtype_name(self.dtype)}"

    @torch.inference_mode()
    def run(self) -> float:
        """The largest deviation from float64 in units of what is tolerated; infinite where NaN came out.

        Raises:
            NotImplementedError: the backend cannot compute this here, and why.
        """
        kernels = bind(self.device.kind, self.device.isa, self.dtype)
        wanted = Wanted(self.device, [self.case.spec(self.dtype)], self.case.page_size, kernels)
        reason = CANDIDATES[self.backend].why_not(wanted)
        if reason:
            raise NotImplementedError(reason)
        return self.measure(CANDIDATES[self.backend].make(wanted))

    def measure(self, backend: AttentionBackend[Any]) -> float:
        is_torch = self.backend == "torch_native"
        scene = make_scene(self.case, self.dtype, self.device.torch_device, self.seed, clean=is_torch)
        return error(scene.run(backend), scene.truth(), self.dtype)


@dataclass(frozen=True, slots=True)
class GraphCheck(Check):
    """The same through a captured graph that saw other lengths before, with rows to spare."""

    @property
    def name(self) -> str:
        return f"attention-{self.backend}-{self.case.name}-{dtype_name(self.dtype)}-graph"

    def measure(self, backend: AttentionBackend[Any]) -> float:
        scene = make_scene(self.case, self.dtype, self.device.torch_device, self.seed)
        return error(replay(scene, backend, self.device), scene.truth(), self.dtype)


def replay(scene: Scene, backend: AttentionBackend[Any], device: Device) -> Tensor:
    """What a graph of two more rows answers, which was captured when all its rows were padding.

    Raises:
        NotImplementedError: the backend cannot be captured, or runs such a step otherwise.
    """
    q_len, num_rows, width = scene.case.new[0], len(scene.case.new) + 2, scene.batch.page_table[0].shape[1] + 1
    spare = min(set(range(scene.kv.k.shape[0])) - set(scene.batch.page_table[0].flatten().tolist()))
    table = torch.full((num_rows, width), spare, dtype=torch.int32, device=scene.q.device)
    static = replace(make_batch([q_len] * num_rows, [0] * num_rows, table, scene.kv), host=None)
    inputs = [x.new_zeros(num_rows * q_len, *x.shape[1:]) for x in (scene.q, scene.k, scene.v)]
    graph = backend.graph_buffers(static)
    if graph is None:
        raise NotImplementedError("it cannot be captured")

    def step() -> Tensor:
        meta = graph.plan(static)
        graph.store(inputs[1], inputs[2], scene.kv, meta)
        return graph.run(inputs[0], scene.kv, meta, scene.rules)

    step()
    run = device.capture(step)
    for mine, theirs in zip(inputs, (scene.q, scene.k, scene.v), strict=True):
        mine[: len(theirs)] = theirs
    static.seq_lens[: len(scene.case.new)] = scene.batch.seq_lens
    static.out_loc[0][: len(scene.q)] = scene.batch.out_loc[0]
    table[: len(scene.case.new), : width - 1] = scene.batch.page_table[0]
    if not graph.replan(scene.batch):
        raise NotImplementedError("such a step runs without its graph")
    return run()[: len(scene.q)]


def error(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> float:
    """In units of what is tolerated."""
    worst = float((got.double() - wanted).abs().max() / wanted.abs().max()) / TOLERANCE[dtype]
    return worst if worst == worst else float("inf")


def parity(device: torch.device, seed: int = 0) -> Iterator[Check]:
    """Every backend of a device in every case; not that of CPUs, whose pages have an order of their own."""
    opened = open_device(str(device))
    for backend, candidate in CANDIDATES.items():
        if candidate.kind not in (None, "cuda"):
            continue
        for case in CASES if opened.kind == "cpu" else (*CASES, *LARGE_CASES):
            for dtype in TOLERANCE:
                if not _is_worth_compiling(backend, case, dtype):
                    continue
                yield Check(backend, case, dtype, opened, seed)
                if candidate.kind == "cuda" and len(set(case.new)) == 1:
                    yield GraphCheck(backend, case, dtype, opened, seed)


def _is_worth_compiling(backend: str, case: Case, dtype: torch.dtype) -> bool:
    """Kernels are compiled for every dtype and most numbers of a case: a second each in Triton, a minute in CUDA."""
    if backend == "flashinfer":
        return dtype == torch.bfloat16 and case.dim in (128, 576) and case.softcap is None
    return dtype == torch.bfloat16 or case.name in ("decode", "mixed")
