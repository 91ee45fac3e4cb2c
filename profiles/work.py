"""Bytes and operations of what a profile names, from what the engine said of its model and steps; measures nothing.

On a CPU a kernel is a stage of the joined decoder, whose work follows from the model's cost. On a GPU it is known of
torch's operations whose shapes were recorded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sgl.bench.limits import Row, num_pairs, rates_of
from sgl.engine.base.cost import Cost

_DTYPES = {
    "float": ("fp32", 4),
    "c10::BFloat16": ("bf16", 2),
    "c10::Half": ("fp16", 2),
    "c10::Float8_e4m3fn": ("fp8", 1),
    "signed char": ("int8", 1),
}
_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_scaled_mm", "aten::_int_mm"}


@dataclass
class Work:
    """Bytes that must move at least, and multiplications and additions by the format they are done in."""

    size_bytes: float = 0.0
    flops: float = 0.0
    format: str = ""

    def add(self, size_bytes: float, flops: float, format: str) -> None:
        self.size_bytes += size_bytes
        self.flops += flops
        self.format = format


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches: bytes per second, and operations per second by format; 0 and nothing if unknown."""

    bandwidth: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(figures: Mapping[str, Any], device: str) -> Ceilings:
        """From the figures of `sgl bench machine`, for the device that was recorded."""
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        if device == "cpu":
            return Ceilings(numbers.get("read_bandwidth", 0.0), rates_of(numbers))
        rates = {name: numbers[f"gpu_matmul_{name}"] for name in ("bf16", "fp8") if f"gpu_matmul_{name}" in numbers}
        return Ceilings(numbers.get("gpu_read_bandwidth", 0.0), rates | {"fp16": rates.get("bf16", 0.0)})

    def floor(self, work: Work) -> tuple[float, str]:
        """The least seconds for it and what they are needed for; (0, "") where that is not known."""
        memory_s = work.size_bytes / self.bandwidth if self.bandwidth else 0.0
        rate = self.rates.get(work.format, 0.0)
        arithmetic_s = work.flops / rate if rate else 0.0
        if not memory_s and not arithmetic_s:
            return 0.0, ""
        return (memory_s, "memory") if memory_s >= arithmetic_s else (arithmetic_s, f"{work.format} arithmetic")


UNKNOWN = Ceilings()


def cost_of(facts: Mapping[str, Any]) -> Cost:
    """What the trace says of the model; unknown if nothing."""
    try:
        return msgspec.convert(facts.get("cost", {}), Cost)
    except msgspec.ValidationError:
        return Cost()


@dataclass(frozen=True)
class Step:
    """What one step computed."""

    rows: Sequence[Row]
    num_logits: int

    @property
    def num_tokens(self) -> int:
        return sum(row.new for row in self.rows)


def steps_of(facts: Mapping[str, Any]) -> list[Step]:
    """As the trace says; nothing if it does not, or not like this version."""
    try:
        return [
            Step([Row(int(past), int(new)) for past, new in step["rows"]], int(step["num_logits"]))
            for step in facts.get("steps", ())
        ]
    except (KeyError, TypeError, ValueError):
        return []


def stages(cost: Cost, steps: Iterable[Step]) -> dict[str, Work]:
    """By the names of native stages and spans, of all layers and steps together."""
    found: dict[str, Work] = defaultdict(Work)
    num_layers = sum(part.num_layers for part in cost.attention)
    for step in steps:
        tokens = step.num_tokens
        for product in cost.products:
            moved = product.size_bytes + product.activation_bytes_per_token * tokens
            found[product.name].add(num_layers * moved, num_layers * 2 * product.params * tokens, product.format)
        for part in cost.attention:
            seen = sum(row.new + _past(row, part.window) for row in step.rows)
            pairs = sum(num_pairs(row, part.window) for row in step.rows)
            size_bytes = part.num_layers * part.kv_bytes_per_token * seen
            found["attention"].add(size_bytes, part.num_layers * part.flops_per_pair * pairs, cost.format)
        if step.num_logits and cost.head.params:
            moved = cost.head.size_bytes + cost.logits_bytes_per_row * step.num_logits
            found["logits"].add(moved, 2 * cost.head.params * step.num_logits, cost.head.format)
    return dict(found)


def _past(row: Row, window: int | None) -> int:
    return row.past if window is None else min(row.past, window - 1)


def of_op(name: str, args: Mapping[str, Any]) -> Work | None:
    """Of a product of torch's whose shapes were recorded."""
    if name not in _PRODUCTS:
        return None
    shapes = [dims for dims in args.get("Input Dims", ()) if isinstance(dims, list) and len(dims) >= 2]
    types = [_DTYPES[kind] for kind in args.get("Input type", ()) if kind in _DTYPES]
    if len(shapes) < 2 or not types or not all(isinstance(n, int) for dims in shapes for n in dims):
        return None
    left, right = shapes[-2:] if name in ("aten::addmm", "aten::baddbmm") else shapes[:2]
    format, itemsize = types[-1]
    elements = math.prod(left) + math.prod(right) + math.prod(left[:-1]) * right[-1]
    return Work(elements * itemsize, 2.0 * math.prod(left) * right[-1], format)
