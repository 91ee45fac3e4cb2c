"""Reads off a loaded model what its steps cost; measures nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from sgl.engine.attn.batch import KVSpec
from sgl.engine.base.cost import AttentionCost, Cost, Product, Weights
from sgl.engine.nn.embedding import Embedding, TiedHead
from sgl.engine.nn.latent import Expansion
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.spec import ModelSpec
from sgl.engine.nn.weights import Leaf

_SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}


def cost_of(
    spec: ModelSpec,
    leaves: Sequence[Leaf],
    head: Linear | TiedHead | None,
    kv_specs: Sequence[KVSpec],
    dtype: torch.dtype,
    products: Mapping[str, Sequence[Linear]] = MappingProxyType({}),
) -> Cost:
    """The cost of a model whose weights are loaded.

    Args:
        leaves: its parts that have weights, the head among them.
        head: None of a model that pools.
        dtype: of the activations.
        products: those linear layers that have a name in profiles.
    """
    tables = [leaf for leaf in leaves if isinstance(leaf, Embedding)]
    linears = [leaf for leaf in leaves if isinstance(leaf, Linear | Expansion) and leaf is not head]
    counted = {id(leaf) for leaf in (*tables, *linears, head)}
    scores = Weights(format="", params=0, size_bytes=0)
    if head is not None:
        scores = Weights(
            format=_short(head.format),
            params=spec.hidden_size * spec.vocab_size,
            size_bytes=head.nbytes or tables[0].nbytes,  # a tied head may multiply by the table itself
        )
    formats: dict[str, list[Linear | Expansion]] = defaultdict(list)
    for linear in linears:
        formats[_short(linear.format)].append(linear)
    return Cost(
        linears=tuple(
            Weights(
                format=name,
                params=sum(linear.in_features * sum(linear.parts) for linear in group),
                size_bytes=sum(linear.nbytes for linear in group),
            )
            for name, group in formats.items()
        ),
        head=scores,
        attention=_attention(spec, kv_specs),
        other_bytes=sum(leaf.nbytes for leaf in leaves if id(leaf) not in counted),
        format=_short(str(dtype).removeprefix("torch.")),
        activation_bytes_per_token=2 * len(spec.layers) * spec.hidden_size * dtype.itemsize,
        logits_bytes_per_row=0 if head is None else 2 * 4 * spec.vocab_size,
        products=tuple(_product(name, group, dtype) for name, group in products.items()),
    )


def _product(name: str, group: Sequence[Linear], dtype: torch.dtype) -> Product:
    """The mean of layers, which may differ."""
    width = sum(linear.in_features + sum(linear.parts) for linear in group) / len(group)
    return Product(
        name=name,
        format=_short(group[0].format),
        params=sum(linear.in_features * sum(linear.parts) for linear in group) // len(group),
        size_bytes=sum(linear.nbytes for linear in group) // len(group),
        activation_bytes_per_token=int(width * dtype.itemsize),
    )


def _attention(spec: ModelSpec, kv_specs: Sequence[KVSpec]) -> tuple[AttentionCost, ...]:
    """Layers that attend alike, counted."""
    kinds = Counter(
        (layer.attention.flops_per_pair, kv.bytes_per_token, layer.attention.window)
        for layer, kv in zip(spec.layers, kv_specs, strict=True)
    )
    return tuple(
        AttentionCost(num_layers=count, flops_per_pair=flops, kv_bytes_per_token=size_bytes, window=window)
        for (flops, size_bytes, window), count in kinds.items()
    )


def _short(format: str) -> str:
    return _SHORT.get(format, format)
