"""Shows what goes through a loaded model, module by module, to those who compare it; changes nothing in it.

Modules go by their names in the checkpoint. What is shown is a copy: layers compute in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgl.engine.nn.embedding import Embedding, TiedHead
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.norm import Norm, RmsQKNorm
from sgl.engine.nn.rope import Rope, Rotation
from sgl.engine.nn.weights import Leaf
from sgl.kernels.ops.linear import LinearFn

Side = Literal["input", "output", "cos", "sin"]
Show = Callable[[str, Side, Tensor], None]
"""Takes a module's name, the side of it, and what was there."""

ROPE = "rotary_emb"
"""The name under which cosines and sines are shown, ``[T, D]``; the sines without their sign."""


def tap(leaves: Sequence[Leaf], rotations: Sequence[Rotation], show: Show) -> None:
    """From now on shows what every module takes in and gives out. A joined product is shown in its parts."""
    for leaf in leaves:
        if isinstance(leaf, Linear):
            leaf.state = _ShownLinear(leaf.state, _names(leaf), leaf.parts if leaf.form != "gated" else (), show)
        elif isinstance(leaf, TiedHead):
            leaf.state = _ShownLinear(leaf.state, (leaf.name,), (leaf.embedding.table.shape[0],), show)
        elif isinstance(leaf, Norm):
            _tap_norm(leaf, _names(leaf)[0], show)
        elif isinstance(leaf, RmsQKNorm):
            _tap_heads(leaf, show)
        elif isinstance(leaf, Embedding):
            _tap_table(leaf, _names(leaf)[0], show)
    for rotation in rotations:
        if isinstance(rotation, Rope):
            _tap_rope(rotation, show)


@dataclass(frozen=True, slots=True)
class _ShownLinear:
    """Args: parts: outputs under each name; none where what comes out is no longer the product."""

    linear: LinearFn
    names: tuple[str, ...]
    parts: tuple[int, ...]
    show: Show

    @property
    def packed_bytes(self) -> int:
        return self.linear.packed_bytes

    def __call__(self, x: Tensor) -> Tensor:
        self.show(self.names[0], "input", x.clone())
        y = self.linear(x)
        if self.parts:
            for name, part in zip(self.names, torch.split(y, list(self.parts), -1), strict=True):
                self.show(name, "output", part.clone())
        return y


def _tap_norm(norm: Norm, name: str, show: Show) -> None:
    plain, summed = norm.normalize, norm.add_normalize

    def shown(x: Tensor, *rest: object) -> Tensor:
        show(name, "input", x.clone())
        y = plain(x, *rest)
        show(name, "output", y.clone())
        return y

    def shown_sum(x: Tensor, residual: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        y, total = summed(x, residual, *rest)
        show(name, "input", total.clone())
        show(name, "output", y.clone())
        return y, total

    norm.normalize, norm.add_normalize = shown, shown_sum


def _tap_heads(norm: RmsQKNorm, show: Show) -> None:
    plain, names = norm.normalize, _names(norm)

    def shown(x: Tensor, *rest: object) -> Tensor:
        y = plain(x, *rest)
        for name, heads in zip(names, torch.split(y, list(norm.heads), 1), strict=True):
            show(name, "output", heads.flatten(1).clone())
        return y

    norm.normalize = shown


def _tap_table(embedding: Embedding, name: str, show: Show) -> None:
    lookup = embedding.lookup

    def shown(ids: Tensor, table: Tensor) -> Tensor:
        y = lookup(ids, table)
        show(name, "output", y.clone())
        return y

    embedding.lookup = shown


def _tap_rope(rope: Rope, show: Show) -> None:
    apply = rope.rotate

    def shown(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        show(ROPE, "cos", cos[:, 0].clone())
        sin_of_halves = sin[:, 0].clone()
        sin_of_halves[:, : sin.shape[-1] // 2].neg_()
        show(ROPE, "sin", sin_of_halves)
        return apply(x, cos, sin)

    rope.rotate = shown


def _names(leaf: Leaf) -> tuple[str, ...]:
    """Of its modules, in the order of its parts."""
    return tuple(dict.fromkeys(slot.name.rpartition(".")[0] for slot in leaf.slots))
