"""Inputs for every op: what to call an implementation with, and what it must answer, computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call. ``run(fn, dtype)`` returns (got, expected in float64), each a list of tensors."""

    op: str
    name: str
    run: Callable[[Callable[..., Any], torch.dtype], tuple[list[Tensor], list[Tensor]]]
    result: torch.dtype | None = None  # of the answer; None if it is the inputs'


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _layer(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


def _elementwise(op: str, name: str, shapes: list[tuple[int, ...]], expected: Callable[..., Any], *extra: Any) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [_random(*shape).to(dtype) for shape in shapes]
        wanted = expected(*(x.double() for x in inputs), *extra)
        got = fn(*inputs, *extra)
        listed = [list(y) if isinstance(y, tuple) else [y] for y in (got, wanted)]
        return listed[0], listed[1]

    return Case(op, name, run)


def _norms() -> Iterator[Case]:
    for tokens, size in ((1, 64), (7, 896), (3, 100)):
        x, w = (tokens, size), (size,)
        name = f"{tokens}x{size}"
        yield _elementwise("norm.rms", name, [x, w], _rms, 1e-5)
        yield _elementwise("norm.layer", name, [x, w, w], _layer, 1e-5)
        yield _elementwise("norm.add_rms", name, [x, x, w], lambda x, r, w, e: (_rms(x + r, w, e), x + r), 1e-5)
        yield _elementwise(
            "norm.add_layer", name, [x, x, w, w], lambda x, r, w, b, e: (_layer(x + r, w, b, e), x + r), 1e-5
        )
    yield _elementwise("norm.rms", "heads", [(5, 6, 24), (6, 24)], _rms, 1e-6)
    yield _elementwise("norm.rms", "large eps", [(2, 64), (64,)], _rms, 0.5)


def _strided_heads() -> Case:
    """Norm and rotation see the query and key part of a wider tensor."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        wide, weight = _random(5, 8, 24).to(dtype), _random(6, 24).to(dtype)
        before = wide.clone()
        got = fn(wide[:, :6], weight, 1e-6)
        assert torch.equal(wide, before), "the input was changed"
        return [got], [_rms(before[:, :6].double(), weight.double(), 1e-6)]

    return Case("norm.rms", "strided", run)


def _rope(tokens: int, heads: int, dim: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        x, cos, sin = (
            _random(tokens, heads + 2, dim).to(dtype),
            _random(tokens, 1, dim).to(dtype),
            _random(tokens, 1, dim).to(dtype),
        )
        got = fn(x[:, :heads], cos, sin)
        assert got.is_contiguous()
        a, b = x[:, :heads].double().split(dim // 2, -1)
        c, s = cos.double(), sin.double()
        half = dim // 2
        wanted = torch.cat((a * c[..., :half] + b * s[..., :half], b * c[..., half:] + a * s[..., half:]), -1)
        return [got], [wanted]

    return Case("rope.apply", f"{tokens}x{heads}x{dim}", run)


def _linear(op: str, tokens: int, k: int, n: int, bias: bool) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        weight, x = (_random(n, k) * k**-0.5).to(dtype), _random(tokens, k).to(dtype)
        b = _random(n).to(dtype) if bias else None
        wanted = x.double() @ weight.double().t() + (0 if b is None else b.double())
        prepared = fn(weight.clone(), b)
        return [prepared(x)], [wanted]

    result = torch.float32 if op == "linear.float32" else None
    return Case(op, f"{tokens}x{k}x{n}{'+b' if bias else ''}", run, result)


def _gated_linear(tokens: int, k: int, n: int, bias: bool) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        weight, x = (_random(2 * n, k) * k**-0.5).to(dtype), _random(tokens, k).to(dtype)
        b = _random(2 * n).to(dtype) if bias else None
        gate, up = (x.double() @ weight.double().t() + (0 if b is None else b.double())).split(n, -1)
        return [fn(weight.clone(), b)(x)], [torch.nn.functional.silu(gate) * up]

    return Case("linear.silu_mul", f"{tokens}x{k}x{n}{'+b' if bias else ''}", run)


def _embedding() -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        table, ids = _random(50, 24).to(dtype), torch.tensor([0, 49, 7, 7])
        return [fn(ids, table)], [table.double()[ids]]

    return Case("embedding", "4 of 50", run)


def _store(tokens: int) -> Case:
    """The pages are poisoned: what was not stored must stay as it was."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        pages, heads, size, dim = 6, 2, 4, 8
        qkv = _random(tokens, 3 * heads, dim).to(dtype)
        k, v = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
        places = torch.randperm(pages * size)[:tokens]
        page_ids, offsets = places // size, places % size
        caches = [torch.full((pages, heads, size, dim), 777.0, dtype=dtype) for _ in "kv"]
        wanted = [cache.double() for cache in caches]
        fn(k, v, *caches, page_ids, offsets)
        for t in range(tokens):
            for cache, new in zip(wanted, (k, v), strict=True):
                cache[page_ids[t], :, offsets[t]] = new[t].double()
        return caches, wanted

    return Case("kv.store", f"{tokens} tokens", run)


CASES: list[Case] = [
    *_norms(),
    _strided_heads(),
    *(_rope(*shape) for shape in ((1, 6, 24), (9, 16, 64), (3, 1, 2))),
    _elementwise("act.silu_mul", "3x40", [(3, 40)], lambda x: torch.nn.functional.silu(x[:, :20]) * x[:, 20:]),
    _elementwise("act.gelu", "3x40", [(3, 40)], torch.nn.functional.gelu),
    _elementwise(
        "act.gelu_tanh",
        "3x40",
        [(3, 40)],
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    *(
        _linear(op, t, k, n, b)
        for op in ("linear", "linear.float32")
        for t in (0, 1, 2, 8, 33)
        for k, n, b in ((64, 112, False), (100, 7, True), (5, 1, True))
    ),
    *(_gated_linear(t, k, n, b) for t in (0, 1, 7, 50) for k, n, b in ((64, 96, False), (100, 41, True), (5, 3, True))),
    _embedding(),
    *(_store(tokens) for tokens in (1, 9)),
]
