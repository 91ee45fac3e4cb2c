"""Finds what a run is held against: the cost of the model and the peaks of this machine; measures them if need be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl.cli import console
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.limits import Yardstick
    from sgl.engine.base.config import EngineConfig
    from sgl.engine.base.cost import Cost


def yardstick_of(cost: Cost, config: EngineConfig, *, required: bool) -> Yardstick:
    """The yardstick of an engine of this process, with as many threads as it has."""
    schedule = config.schedule
    return yardstick(cost, schedule.chunked_prefill_size or schedule.max_prefill_tokens, required=required)


def yardstick(cost: Cost, chunk: int, *, required: bool) -> Yardstick:
    """With the peaks of as many threads as torch has now.

    Args:
        chunk: prompt tokens computed at once; below 1 for no bound.
        required: whether the share of the limit must be known.

    Raises:
        ConfigError: it must be and cannot.
    """
    from sgl.bench import limits, machine
    from sgl.cli.bench_machine import own_kernels

    figures: dict[str, float] = {}
    if cost.is_known:
        with console.err().status("measuring the machine's peaks") as status:
            peaks = machine.peaks(own_kernels(), lambda what: status.update(f"measuring: {what}"))
        figures = peaks.figures
        if peaks.disturbed:
            told = "Other programs used the cores while the machine's peaks were measured"
            console.err().print(f"{told}: shares of the limit are too high.", soft_wrap=True)
    found = limits.Yardstick(cost, limits.rates_of(figures), chunk if chunk > 0 else 1 << 30)
    if required and found.missing:
        raise ConfigError(f"--min-limit cannot be checked: {found.missing}.", param="--min-limit")
    return found
