"""Inputs for every op: what to call an implementation with, and what it must answer, computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sgl.kernels.checks import formats, latent, moe, sampling
from sgl.kernels.checks.case import Case, product, random
from sgl.kernels.checks.stored import in_steps
from sgl.kernels.ops.decode import Located
from sgl.kernels.ops.linear import Form, QuantizedWeight

FORMS: tuple[Form, ...] = ("plain", "gated", "float32")
QUANTIZED: tuple[tuple[Literal[4, 8], int, bool], ...] = (
    (8, 0, False),
    *((4, group, zeros) for group in (32, 64, 128) for zeros in (False, True)),
)
"""Bits, inputs that share a scale, and whether there are zero points."""

_LONG_SCALES: tuple[tuple[Form, int, bool, bool], ...] = (("plain", 32, True, True), ("gated", 256, False, False))
"""Of scales that bfloat16 would round: form, inputs that share one, zero points, and whether inputs are reordered."""


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _layer(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


def _elementwise(op: str, name: str, shapes: list[tuple[int, ...]], expected: Callable[..., Any], *extra: Any) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [random(*shape).to(dtype) for shape in shapes]
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
    for op, count in (("norm.rms", 1), ("norm.add_rms", 2), ("norm.layer", 1), ("norm.add_layer", 2)):
        yield _wide_weight(op, count)
    yield _elementwise("norm.rms", "large eps", [(2, 64), (64,)], _rms, 0.5)


def _wide_weight(op: str, count: int) -> Case:
    """Weights that bfloat16 would round; ``count`` inputs beside them."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [random(4, 96).to(dtype) for _ in range(count)]
        weights = [(1 + random(96) / 1000).float() for _ in range(1 + op.endswith("layer"))]
        total = torch.stack(inputs).double().sum(0)
        expected: Callable[..., Tensor] = _layer if op.endswith("layer") else _rms
        wanted = expected(total, *(weight.double() for weight in weights), 1e-6)
        got = fn(*inputs, *weights, 1e-6)
        return ([got], [wanted]) if count == 1 else (list(got), [wanted, total])

    return Case(op, "float32 weight", run)


def _strided_heads() -> Case:
    """Norm and rotation see the query and key part of a wider tensor."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        wide, weight = random(5, 8, 24).to(dtype), random(6, 24).to(dtype)
        before = wide.clone()
        got = fn(wide[:, :6], weight, 1e-6)
        assert torch.equal(wide, before), "the input was changed"
        return [got], [_rms(before[:, :6].double(), weight.double(), 1e-6)]

    return Case("norm.rms", "strided", run)


def _rope(tokens: int, heads: int, dim: int) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        x, cos, sin = (
            random(tokens, heads + 2, dim).to(dtype),
            random(tokens, 1, dim).to(dtype),
            random(tokens, 1, dim).to(dtype),
        )
        got = fn(x[:, :heads], cos, sin)
        assert got.is_contiguous()
        a, b = x[:, :heads].double().chunk(2, -1)
        c, s = cos.double(), sin.double()
        half = dim // 2
        wanted = torch.cat((a * c[..., :half] + b * s[..., :half], b * c[..., half:] + a * s[..., half:]), -1)
        return [got], [wanted]

    return Case("rope.apply", f"{tokens}x{heads}x{dim}", run)


def _linear(form: Form, tokens: int, k: int, n: int, bias: bool) -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        weight, x = (random(n, k) * k**-0.5).to(dtype), random(tokens, k).to(dtype)
        b = random(n).to(dtype) if bias else None
        return [fn(weight.clone(), b, form)(x)], [product(x.double(), weight.double(), b, form)]

    result = torch.float32 if form == "float32" else None
    return Case("linear", f"{form} {tokens}x{k}x{n}{'+b' if bias else ''}", run, result)


def _quantized(
    form: Form,
    bits: Literal[4, 8],
    group: int,
    zeros: bool,
    tokens: int,
    k: int,
    n: int,
    *,
    scale: torch.dtype = torch.bfloat16,
    reordered: bool = False,
) -> Case:
    """Against the product of the values that the bytes stand for, whose inputs may stand in an order of their own."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        per_scale = k if bits == 8 else group
        groups, most = -(-k // per_scale), 1 << bits
        values = torch.randint(0, most, (n, k), dtype=torch.uint8)
        scales = (random(n, groups) * k**-0.5 / most).to(scale).float()
        points = torch.randint(0, most, (n, groups), dtype=torch.uint8) if zeros else None
        x, bias = random(tokens, k).to(dtype), random(n).to(dtype)
        x[:, : k // 3] *= 1e-3
        order = torch.randperm(k) if reordered else None
        prepared = fn(QuantizedWeight(values.clone(), scales, points, bits, per_scale, order), bias, form)
        column = torch.arange(k) // per_scale
        middle = torch.full((n, groups), most / 2) if points is None else points
        weight = (values.double() - middle[:, column].double()) * scales.double()[:, column]
        met = x if order is None else x[:, order]
        return [prepared(x)], [product(in_steps(met, per_scale), weight, bias, form)]

    result = torch.float32 if form == "float32" else None
    odd = ("f16" if scale == torch.float16 else "") + ("o" if reordered else "")
    name = f"int{bits}-g{group}{'z' if zeros else ''}{odd} {form} {tokens}x{k}x{n}"
    return Case("linear.quantized", name, run, result)


def _rounding(bits: Literal[4, 8], group: int, rows: int, k: int) -> Case:
    """What was rounded differs from the weight by half a step at most; the greatest of 4 bits may take all of one."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        weight = (random(rows, k) * 0.02).to(dtype)
        weight[rows // 2] = 0
        per_scale = k if bits == 8 else group
        rounded = fn(weight, bits, per_scale)
        column, middle, most = torch.arange(k) // per_scale, 1 << bits - 1, (1 << bits) - 1
        steps = rounded.scales.double()[:, column]
        stored = (rounded.values.double() - middle) * steps
        at_the_end = (rounded.values == most) & (bits == 4)
        bound = steps.abs() * torch.where(at_the_end, 1.02, 0.501)  # the scale itself was rounded
        excess = ((stored - weight.double()).abs() - bound).clamp(min=0)
        assert rounded.scales.shape == (rows, -(-k // per_scale)) and rounded.values.shape == (rows, k)
        peaks = torch.stack([part.abs().amax(1) for part in torch.split(weight.double(), per_scale, 1)], 1)
        wanted = peaks / 127 if bits == 8 else (peaks / 8).bfloat16().double()
        return [(rounded.scales.double().abs() + excess.amax()).float()], [wanted]

    return Case("weight.round", f"int{bits}-g{group} {rows}x{k}", run, torch.float32)


def _embedding() -> Case:
    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        table, ids = random(50, 24).to(dtype), torch.tensor([0, 49, 7, 7])
        return [fn(ids, table)], [table.double()[ids]]

    return Case("embedding", "4 of 50", run)


def _store(tokens: int) -> Case:
    """The pages are poisoned: what was not stored must stay as it was."""

    def run(fn: Callable[..., Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        pages, heads, size, dim = 6, 2, 4, 8
        qkv = random(tokens, 3 * heads, dim).to(dtype)
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


def _slots(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of nine slots, how many are computed (from none to all but one), and ``count`` of the slots."""
    computed = torch.tensor([0, 39, 7, 8, 15, 16, 1, 31, 32])
    return torch.randint(0, 1 << 20, (9, 40), dtype=torch.int32), computed, torch.randperm(9)[:count]


def _locate(count: int, groups: int) -> Case:
    def run(fn: Callable[..., Any], _: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        tokens, computed, slots = _slots(count)
        pages = [torch.randint(0, 1 << 20, (9, 5), dtype=torch.int32) for _ in range(groups)]
        found = fn(tokens, computed, pages, 8, slots)
        assert found.seq_lens.dtype == torch.int32 and torch.equal(found.seq_lens.long(), found.next_positions)
        listed = [(slot, int(computed[slot])) for slot in slots.tolist()]
        wanted = [
            [int(tokens[slot, at]) for slot, at in listed],
            [at for _, at in listed],
            [at + 1 for _, at in listed],
            *([int(table[slot, at // 8]) * 8 + at % 8 for slot, at in listed] for table in pages),
        ]
        got = [found.input_ids, found.positions, found.next_positions, *found.out_loc]
        return got, [torch.tensor(row, dtype=torch.float64) for row in wanted]

    return Case("decode.locate", f"{count} slots, {groups} groups", run, torch.int64)


def _refill(count: int, q_len: int, groups: int) -> Case:
    """Into tensors that are wider than they need to be: what is beyond must stay as it was."""

    def run(fn: Callable[..., Any], _: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        tokens, computed, slots = _slots(count)
        computed = computed.clamp(max=40 - q_len)
        pages = [torch.randint(0, 1 << 20, (9, 5), dtype=torch.int32) for _ in range(groups)]
        size = count * q_len
        wide = [torch.full((size + 3,), -7) for _ in range(3 + groups)]
        lens = torch.full((count + 3,), -7, dtype=torch.int32)
        tables = [torch.full((count + 3, 5), -7, dtype=torch.int32) for _ in range(groups)]
        ids, positions, following, *places = (part[:size] for part in wide)
        out = Located(ids, positions, following, lens[:count], tuple(places))
        fn(tokens, computed, pages, 8, slots, q_len, out, [table[:count] for table in tables])
        listed = [(slot, int(computed[slot]) + step) for slot in slots.tolist() for step in range(q_len)]
        rows = [
            [int(tokens[slot, at]) for slot, at in listed],
            [at for _, at in listed],
            [at + 1 for _, at in listed],
            *([int(table[slot, at // 8]) * 8 + at % 8 for slot, at in listed] for table in pages),
        ]
        wanted = [torch.tensor([*row, -7, -7, -7], dtype=torch.float64) for row in rows]
        ends = [int(computed[slot]) + q_len for slot in slots.tolist()]
        wanted.append(torch.tensor([*ends, -7, -7, -7], dtype=torch.float64))
        beyond = torch.full((3, 5), -7)
        wanted += [torch.cat((table[slots], beyond)).double() for table in pages]
        return [*wide, lens.long(), *(table.long() for table in tables)], wanted

    return Case("decode.refill", f"{count} slots, {q_len} tokens, {groups} groups", run, torch.int64)


def _commit(count: int) -> Case:
    def run(fn: Callable[..., Any], _: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        tokens, computed, slots = _slots(count)
        positions, token_ids = torch.randint(1, 40, (count,)), torch.randint(0, 1 << 20, (count,))
        wanted_tokens, wanted_computed = tokens.double(), computed.double()
        for slot, at, token_id in zip(slots.tolist(), positions.tolist(), token_ids.tolist(), strict=True):
            wanted_tokens[slot, at], wanted_computed[slot] = token_id, at
        fn(tokens, computed, slots, positions, token_ids)
        return [tokens.long(), computed], [wanted_tokens, wanted_computed]

    return Case("decode.commit", f"{count} slots", run, torch.int64)


def _large() -> Iterator[Case]:
    """In the sizes of an 8B model: what small cases do not show are grids of many blocks and wide rows."""
    shape = (1000, 4096)
    cases = (
        _elementwise(
            "norm.add_rms", "1000x4096", [shape, shape, shape[1:]], lambda x, r, w, e: (_rms(x + r, w, e), x + r), 1e-5
        ),
        _elementwise("norm.rms", "1000x40x128", [(1000, 40, 128), (40, 128)], _rms, 1e-6),
        _elementwise(
            "act.silu_mul",
            "256x28672",
            [(256, 28672)],
            lambda x: torch.nn.functional.silu(x[:, :14336]) * x[:, 14336:],
        ),
        _rope(1000, 40, 128),
        *(_linear("float32", rows, 4096, 32000, False) for rows in (1, 256)),
        *(_linear("gated", rows, 4096, 28672, False) for rows in (1, 64, 1000)),
    )
    return (replace(case, large=True) for case in cases)


CASES: list[Case] = [
    *_norms(),
    _strided_heads(),
    *(_rope(*shape) for shape in ((1, 6, 24), (9, 16, 64), (3, 1, 2))),
    _elementwise("act.silu_mul", "3x40", [(3, 40)], lambda x: torch.nn.functional.silu(x[:, :20]) * x[:, 20:]),
    _elementwise("act.gelu", "3x40", [(3, 40)], torch.nn.functional.gelu),
    _elementwise("act.relu", "3x40", [(3, 40)], lambda x: x.clamp(min=0)),
    _elementwise(
        "act.gelu_tanh_mul",
        "3x80",
        [(3, 80)],
        lambda x: torch.nn.functional.gelu(x[:, :40], approximate="tanh") * x[:, 40:],
    ),
    _elementwise(
        "act.gelu_tanh",
        "3x40",
        [(3, 40)],
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    *(
        _linear(form, t, k, n, b)
        for form in FORMS
        for t in (0, 1, 2, 8, 33)
        for k, n, b in ((64, 112, False), (100, 6, True), (5, 2, True))
    ),
    *(
        _quantized(form, *format, t, k, n)
        for form in FORMS
        for format in QUANTIZED
        for t in (0, 1, 2, 8, 33)
        for k, n in ((64, 112), (100, 6), (5, 2), (320, 70))
    ),
    *(
        _quantized(form, 4, group, zeros, t, k, n, scale=torch.float16, reordered=reordered)
        for form, group, zeros, reordered in _LONG_SCALES
        for t in (1, 8, 33)
        for k, n in ((64, 112), (320, 70))
    ),
    *(_rounding(*format[:2], rows, k) for format in QUANTIZED[::2] for rows, k in ((2, 64), (7, 100), (40, 5))),
    *formats.cases(),
    *latent.cases(),
    *moe.cases(),
    *sampling.cases(),
    *_large(),
    _embedding(),
    *(_store(tokens) for tokens in (1, 9)),
    *(_locate(count, groups) for count in (0, 1, 9) for groups in (1, 2)),
    *(_refill(count, q_len, groups) for count in (0, 1, 9) for q_len in (1, 3) for groups in (1, 2)),
    *(_commit(count) for count in (0, 1, 9)),
]
