"""Quantizes without data: one unit after the other is read, rounded to nearest and written, and forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sgl.quant.recipes.plan import Plan, Unit, layer_of
from sgl.quant.recipes.report import ModuleError, Watcher, measure
from sgl.quant.scheme import Encoded, WritableScheme
from sgl.quant.slices import rows_of, slices
from sgl.quant.writer import Writer


def round_all(plan: Plan, writer: Writer, watcher: Watcher) -> None:
    """Writes every unit that is not complete.

    Raises:
        ModelError: a weight holds a number that is none, or cannot be read.
        ConfigError: the disk is full.
    """
    layers = [layer for layer in dict.fromkeys(layer_of(unit.name) for unit in plan.units) if layer]
    sizes = {unit.name: sum(plan.source.entries[name].nbytes for name in _inputs(unit)) for unit in plan.units}
    done = sum(sizes[name] for name in writer.units)
    watcher.begin("rounding", sum(sizes.values()), done)
    try:
        for unit in plan.units:
            if unit.name not in writer.units:
                round_unit(plan, unit, writer)
                layer = layer_of(unit.name)
                where = f"layer {layers.index(layer) + 1} of {len(layers)}" if layer else unit.name
                watcher.step(where, sizes[unit.name])
    finally:
        writer.save()


def round_unit(plan: Plan, unit: Unit, writer: Writer) -> None:
    """One unit: copied in pieces, or rounded."""
    if unit.scheme is None:
        writer.write(unit.name, plan.source.chunks(unit.name))
        writer.complete(unit.name, {})
        return
    weights = [plan.source.read(f"{module}.weight") for module in unit.modules]
    errors = []
    for module, weight, tensors in zip(unit.modules, weights, encode(unit.scheme, weights), strict=True):
        for suffix, tensor in tensors.items():
            writer.write(f"{module}.{suffix}", [tensor])
        errors.append(error_of(module, unit.scheme, weight, tensors))
    writer.complete(unit.name, {"errors": [error.to_dict() for error in errors]})


def error_of(module: str, scheme: WritableScheme, weight: Tensor, tensors: Mapping[str, Tensor]) -> ModuleError:
    """What is in ``tensors`` against the weight that they stand for."""
    rows, inner = weight.shape
    own = {suffix: tensor for suffix, tensor in tensors.items() if suffix != "weight_shape"}  # that of all rows
    after = sum(tensor.nbytes for tensor in tensors.values())
    parts = []
    for place in slices(rows, inner):
        part = Encoded(module, scheme, rows_of(own, rows, place), (place.stop - place.start, inner))
        parts.append(measure(module, scheme.label, weight[place], part.dequantize(), after))
    error, signal = sum(part.error for part in parts), sum(part.signal for part in parts)
    return replace(parts[0], error=error, signal=signal, before=weight.nbytes)


def encode(scheme: WritableScheme, weights: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of every weight.

    Several are rounded as one, so that they share a global scale: other engines stack them.
    """
    if len(weights) == 1:
        return [scheme.encode(weights[0])]
    rows, sizes = sum(map(len, weights)), [len(weight) for weight in weights]
    parts = {suffix: _split(tensor, rows, sizes) for suffix, tensor in scheme.encode(torch.cat(list(weights))).items()}
    return [{suffix: part[i] for suffix, part in parts.items()} for i in range(len(weights))]


def _split(tensor: Tensor, rows: int, sizes: list[int]) -> list[Tensor]:
    """A tensor with a row per output is cut; one without belongs to every module."""
    if tensor.dim() == 2 and len(tensor) == rows:
        return [tensor[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    return [tensor] * len(sizes)


def _inputs(unit: Unit) -> list[str]:
    return [f"{module}.weight" for module in unit.modules] or [unit.name]
