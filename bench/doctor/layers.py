"""Names the first layer and op in which this engine and the reference differ, and what of it can be told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.bench.doctor.fault import Fault
from sgl.bench.doctor.traces import Trace
from sgl.engine.nn.spec import ModelSpec, WeightNames
from sgl.engine.nn.taps import ROPE, Side

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 2e-2}
"""What rounding makes, also behind many layers: root mean square of the differences over that of the values. The
largest difference says less: one token that looks elsewhere because two scores are nearly equal is not a fault."""

FLOAT16_MAX = 65504.0
_LEAST = 1e-12  # what counts as a value where all are zero
_SHIFTS = (1, -1, 2, -2)


@dataclass(frozen=True)
class Place:
    """Where a value is: the layer if it is in one, the module, and what had made the value."""

    layer: int | None
    module: str
    op: str

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"layer {self.layer}, "
        return f"{layer}{self.op} ({self.module})"


class Places:
    """What the values at a module's sides are, by the names that a family gives to its modules."""

    def __init__(self, names: WeightNames) -> None:
        roles: list[tuple[str, str, str]] = [
            (names.embedding, "", "embedding"),
            (names.positions, "", "positions"),
            (names.head, "", "head"),
            (names.norm, "residual sum", "norm"),
            (names.attention_norm, "residual sum", "attention norm"),
            (names.mlp_norm, "residual sum", "mlp norm"),
            (names.attention_out_norm, "", "norm behind attention"),
            (names.mlp_out_norm, "", "norm behind mlp"),
            *((name, "", "qkv projection") for name in names.qkv),
            *((name, "", "norm of heads") for name in (names.q_norm, names.k_norm)),
            (names.attention_out, "attention", "attention output projection"),
            *((name, "", "mlp up projection") for name in names.up),
            (names.down, "mlp activation", "mlp down projection"),
        ]
        self._roles = [(_pattern(name), before, made) for name, before, made in roles if name]

    def of(self, name: str, side: Side) -> Place:
        if name == ROPE:
            return Place(None, name, "rope")
        for pattern, before, made in self._roles:
            if found := pattern.fullmatch(name):
                layer = int(found[1]) if pattern.groups else None
                op = made if side == "output" else before or f"input of {made}"
                return Place(layer, name, op)
        return Place(None, name, side)


@dataclass(frozen=True)
class Difference:
    """
    Args:
        largest: the largest one, over all tokens.
        relative: root mean square of all over that of the reference's values.
        token: the first position that is beyond the tolerance by itself.
    """

    largest: float
    relative: float
    token: int


def compare(own: Trace, other: Trace, spec: ModelSpec, names: WeightNames) -> list[Fault]:
    """The first difference, if there is any."""
    places = Places(names)
    dtype = next(iter(own.values.values())).dtype
    for (name, side), value in own.values.items():
        reference = other.values.get((name, side))
        if reference is None or (name == names.embedding and spec.embedding_scale is not None):
            continue  # the one scales inside of its embedding, the other behind it
        place, same = places.of(name, side), _like(reference, value)
        if same is None:
            return [_sized(place, value, reference)]
        found = difference(value, same, dtype)
        if found.relative > TOLERANCE[dtype]:
            return [_fault(place, found, _reason(place, value, same, own, other))]
    vocab_size = min(own.logits.shape[1], other.logits.shape[1])
    found = difference(own.logits[:, :vocab_size], other.logits[:, :vocab_size], dtype)
    if found.relative > TOLERANCE[dtype]:
        return [_fault(Place(None, names.head, "logits"), found, "what is done to the scores of the head differs")]
    return _told_otherwise(own, other, places)


def _told_otherwise(own: Trace, other: Trace, places: Places) -> list[Fault]:
    """The first number that layers are given and that differs by too little to show in what they compute."""
    for module, epsilon in own.epsilons.items():
        theirs = other.epsilons.get(module, epsilon)
        if theirs != epsilon:
            place = places.of(module, "output")
            return [Fault("layers", "wrong", str(place), f"epsilon {theirs:g}", f"epsilon {epsilon:g}", _fix(place))]
    if own.rope and other.rope and own.rope != other.rope:
        place = places.of(ROPE, "cos")
        return [Fault("layers", "wrong", str(place), other.rope, own.rope, _fix(place))]
    return []


def overflow(own: Trace, names: WeightNames) -> list[Fault]:
    """The first value that float16 has no room for."""
    places = Places(names)
    for (name, side), value in own.values.items():
        largest = float(value.abs().max())
        if largest > FLOAT16_MAX:
            return [
                Fault(
                    "layers",
                    "wrong",
                    str(places.of(name, side)),
                    f"values up to {FLOAT16_MAX:.0f}, where float16 ends",
                    f"{largest:.0f}, which float16 makes infinite",
                    "serve it with --dtype bfloat16 or float32",
                )
            ]
    return []


def difference(own: Tensor, reference: Tensor, dtype: torch.dtype) -> Difference:
    """Of two ``[T, ...]``; infinite where one of them has a number that is none and the other has not."""
    a, b = own.float().flatten(1), reference.float().flatten(1)
    gaps = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).nan_to_num(math.inf, math.inf, math.inf)
    size = max(float(b.nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt()), _LEAST)
    beyond = (gaps.square().mean(1).sqrt() > TOLERANCE[dtype] * size).nonzero()
    relative = float(gaps.square().mean().sqrt()) / size
    return Difference(float(gaps.abs().max()), relative, int(beyond[0]) if len(beyond) else 0)


def _like(reference: Tensor, own: Tensor) -> Tensor | None:
    """Without the batch, heads side by side; None if it has another size."""
    rows = reference[0].flatten(1) if len(reference) == 1 and reference.dim() > 2 else reference.flatten(1)
    if rows.shape == own.flatten(1).shape:
        return rows.view(own.shape)
    if reference.dim() == 4 and reference[0].transpose(0, 1).flatten(1).shape == own.flatten(1).shape:
        return reference[0].transpose(0, 1).reshape(own.shape)
    return None


def _sized(place: Place, own: Tensor, reference: Tensor) -> Fault:
    return Fault(
        "layers",
        "wrong",
        str(place),
        f"as many numbers as the reference has ({list(reference.shape)})",
        str(list(own.shape)),
        "compare the sizes in config.json with the original's",
    )


def _fault(place: Place, found: Difference, reason: str) -> Fault:
    if math.isinf(found.largest):
        told = "infinite or not a number"
    else:
        told = f"differences up to {found.largest:.3g}, {found.relative:.1%} on average"
    return Fault(
        "layers",
        "wrong",
        str(place),
        "what the reference computes; all before is the same",
        f"{told}, from token {found.token} on: {reason}",
        _fix(place),
    )


def _fix(place: Place) -> str:
    if place.op in ("rope", "positions"):
        return "compare the rope parameters and the positions in config.json with the original's"
    if "norm" in place.op:
        return "compare the epsilon in config.json, and this weight, with the original's"
    if place.op == "attention":
        return "compare heads, window, scale and softcap in config.json with the original's"
    if place.op == "mlp activation":
        return "compare the weights of gate and up, and hidden_act in config.json, with the original's"
    return "compare this weight with the original's (--reference DIR does); if it is the same, it is a bug in sgl"


def _reason(place: Place, own: Tensor, reference: Tensor, mine: Trace, theirs: Trace) -> str:
    """What else can be told of the difference."""
    shift = _shift(own, reference) if place.op in ("rope", "positions") else 0
    if shift:
        return f"positions are {abs(shift)} too {'high' if shift > 0 else 'low'}"
    if place.op == "rope" and mine.rope != theirs.rope:
        return f"{mine.rope} here, {theirs.rope} in the reference"
    epsilons = (mine.epsilons.get(place.module), theirs.epsilons.get(place.module))
    if None not in epsilons and epsilons[0] != epsilons[1]:
        return f"epsilon {epsilons[0]:g} here, {epsilons[1]:g} in the reference"
    return "what goes in is the same, so the weight or the op itself differs"


def _shift(own: Tensor, reference: Tensor) -> int:
    """By how many rows ``own`` is ahead of the reference, 0 if it is not the same moved."""
    for shift in _SHIFTS:
        if len(own) <= abs(shift) + 1:
            continue
        a, b = (own[:-shift], reference[shift:]) if shift > 0 else (own[-shift:], reference[:shift])
        if difference(a, b, own.dtype).relative <= TOLERANCE[own.dtype]:
            return shift
    return 0


def _pattern(name: str) -> re.Pattern[str]:
    """Of a family's name for a module, with the layer's number as its group."""
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))
