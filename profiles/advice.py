"""The largest opportunities that a profile shows, in words: what costs how much, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sgl.profiles.analysis import Analysis, Line

COUNT = 3
_LEAST = 0.01  # of the steps: less is not worth a sentence
_NARROWER = {"bf16": ("int8", 0.5), "fp16": ("int8", 0.5), "fp32": ("bf16", 0.5), "int8": ("int4", 0.5)}
"""By the format of weights, one that needs fewer bytes, and which part of them is saved."""


@dataclass(frozen=True)
class Opportunity:
    """Something that could take less time.

    Args:
        saved: at most, as a part of the steps.
    """

    saved: float
    text: str


def opportunities(found: Analysis) -> list[Opportunity]:
    """The largest ones first, at most `COUNT`."""
    every = [*_far_from_ceiling(found), *_narrower(found), *_host(found), *_small_operations(found), *_between(found)]
    worth = [one for one in every if one.saved >= _LEAST]
    return sorted(worth, key=lambda one: -one.saved)[:COUNT]


def _far_from_ceiling(found: Analysis) -> Iterator[Opportunity]:
    for line in found.kernels:
        if line.of_ceiling is None or line.of_ceiling >= 1:
            continue
        saved = (line.total_us - line.floor_us) / found.step_us
        yield Opportunity(
            saved,
            f"{line.name} takes {line.total_us / found.step_us:.0%} of the steps at {line.of_ceiling:.0%} of the "
            f"machine's ceiling ({line.bound}): at the ceiling, steps would be {saved:.0%} shorter.",
        )


def _narrower(found: Analysis) -> Iterator[Opportunity]:
    """Weights in fewer bytes, where reading them is what takes the time."""
    if found.device != "cpu" or not found.ceilings.bandwidth:
        return
    by_format: dict[str, list[Line]] = {}
    formats = {product.name: product.format for product in found.cost.products} | {"logits": found.cost.head.format}
    for line in found.kernels:
        if line.bound == "memory" and formats.get(line.name) in _NARROWER:
            by_format.setdefault(formats[line.name], []).append(line)
    for format, lines in by_format.items():
        narrow, part = _NARROWER[format]
        saved = part * sum(min(line.floor_us, line.total_us) for line in lines) / found.step_us
        yield Opportunity(
            saved,
            f"Reading {format} weights bounds {', '.join(line.name for line in lines)}: with {narrow} weights "
            f"(--quantization), steps would be up to {saved:.0%} shorter; check the answers' quality.",
        )


def _host(found: Analysis) -> Iterator[Opportunity]:
    longest = ", ".join(f"{line.name} {line.total_us / found.num_steps:.0f} us" for line in found.host[:3])
    if found.device == "cpu":
        saved = found.host_us / found.step_us
        yield Opportunity(
            saved,
            f"Host code (Python, without torch's operations) takes {saved:.0%} of the steps, per step {longest}; a CPU "
            "computes nothing meanwhile. Requests that share steps share it.",
        )
    else:
        saved = found.idle_us / found.step_us
        yield Opportunity(
            saved,
            f"The device is idle for {saved:.0%} of the steps, waiting for launches and results (per step {longest}): "
            "captured graphs, the overlapped schedule and larger batches fill it.",
        )


def _small_operations(found: Analysis) -> Iterator[Opportunity]:
    if found.device != "cpu":
        return
    small = [line for line in found.kernels if line.name.startswith("aten::") and line.total_us < 20 * line.count]
    total_us, count = sum(line.total_us for line in small), sum(line.count for line in small)
    saved = total_us / found.step_us
    if small:
        yield Opportunity(
            saved,
            f"{count / found.num_steps:.0f} small operations of torch a step take {saved:.0%} of it "
            f"(most: {', '.join(line.name for line in small[:3])}); profiling makes them look longer than they are.",
        )


def _between(found: Analysis) -> Iterator[Opportunity]:
    """Time between steps is the engine's too, unless there was nothing to do."""
    gap_us = found.wall_us - found.step_us
    share = gap_us / found.wall_us if found.wall_us else 0.0
    yield Opportunity(
        share if share < 0.5 else 0.0,  # more of it, and the engine was waiting for requests
        f"{share:.0%} of the time lies between steps ({gap_us / found.num_steps:.0f} us each): the engine reads its "
        "inbox and sends answers, or waits for requests.",
    )
