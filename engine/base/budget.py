"""Divides the memory among weights, activations and KV pages. Pure; prints nothing and allocates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sgl.engine.base.config import EngineConfig, Machine
from sgl.engine.base.errors import ConfigError

MIN_TOKENS = 512
"""The KV cache must hold this many tokens (or one full context) to be of use."""


@dataclass(frozen=True)
class Line:
    """One line of the budget: an amount (negative if it is taken away) and what it is."""

    name: str
    size_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Budget:
    """What fits.

    ``num_pages`` are usable pages; a pool that keeps a page of its own adds it on top.
    """

    num_pages: int
    max_total_tokens: int
    max_running_requests: int
    lines: tuple[Line, ...]
    reasons: Mapping[str, str]

    def apply(self, config: EngineConfig) -> EngineConfig:
        """The configuration with the two settled values and why they are so."""
        found = {
            "cache.max_total_tokens": self.max_total_tokens,
            "schedule.max_running_requests": self.max_running_requests,
        }
        return config.replace({key: (found[key], reason) for key, reason in self.reasons.items()})


def size(num_bytes: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    power = next((n for n in range(4) if abs(num_bytes) < 1024 ** (n + 1)), 4)
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{num_bytes / 1024**power:.{min(power, 1)}f} {unit}"


def solve(
    config: EngineConfig,
    machine: Machine,
    *,
    weight_bytes: int,
    kv_bytes_per_page: int,
    activation_bytes: int,
    graph_bytes: int = 0,
    workspace_bytes: int = 0,
    free_after_bytes: int | None = None,
) -> Budget:
    """Settles how many pages the KV cache has and how many requests may run.

    Args:
        config: resolved.
        machine: as it was before the weights were loaded.
        weight_bytes: of the loaded model.
        kv_bytes_per_page: all layers together.
        activation_bytes: the most that one step needs beside them.
        graph_bytes: set aside for captured steps.
        workspace_bytes: what attention keeps beside the KV cache.
        free_after_bytes: what a GPU really had left once the weights were there, if that is known already.

    Raises:
        ConfigError: too little memory; names every line of the budget and the flags that help.
    """
    page_size, context = config.cache.page_size, config.model.context_length
    running, fraction = config.schedule.max_running_requests, config.cache.mem_fraction_static
    assert context is not None and running is not None and fraction is not None, "the configuration is not resolved"
    lines = [
        *_usable(config, machine, fraction, free_after_bytes),
        Line("weights", -weight_bytes),
        Line("activations", -activation_bytes, "of the largest step"),
    ]
    if workspace_bytes:
        lines.append(Line("attention workspace", -workspace_bytes, "another --attention-backend may need none"))
    if graph_bytes:
        lines.append(Line("CUDA graphs", -graph_bytes, "the largest captured step"))
    if free_after_bytes is not None:
        held = max(machine.memory_bytes - free_after_bytes - weight_bytes, 0)
        lines.append(Line("others", -held, "the driver, libraries and other processes"))
    room = sum(line.size_bytes for line in lines[1:])
    fitting = max(0, room // kv_bytes_per_page)
    least = -(-min(context, MIN_TOKENS) // page_size)
    asked = config.cache.max_total_tokens
    wanted = least if asked is None else asked // page_size
    if wanted == 0:
        raise ConfigError(
            f"--max-total-tokens {asked} is less than one page; use at least --page-size ({page_size}).",
            param="--max-total-tokens",
        )
    if fitting < wanted:
        raise _too_little(lines, room, wanted, page_size, kv_bytes_per_page, asked is not None)
    if asked is not None:
        num_pages, reason = wanted, "" if asked % page_size == 0 else f"{asked} rounded down to whole pages"
    else:
        most = running * -(-context // page_size)
        num_pages = min(fitting, most)
        reason = (
            f"{running} requests of {context} tokens never need more"
            if most <= fitting
            else "all that the memory allows"
        )
    reasons = {"cache.max_total_tokens": reason} if reason else {}
    if running > num_pages and config.provenance["schedule.max_running_requests"].source == "resolved":
        running = num_pages
        reasons["schedule.max_running_requests"] = f"every request needs a page and there are {num_pages}"
    lines.append(Line("KV cache", -num_pages * kv_bytes_per_page, f"{num_pages} pages of {page_size} tokens"))
    left = sum(line.size_bytes for line in lines[1:])
    return Budget(num_pages, num_pages * page_size, running, (*lines, Line("left", left)), reasons)


def _usable(config: EngineConfig, machine: Machine, fraction: float, free_after_bytes: int | None) -> tuple[Line, Line]:
    """Memory, and the share of it that the engine takes."""
    share = f"--mem-fraction-static {fraction:g}"
    if config.model.device == "cpu":
        free = machine.memory_free_bytes
        return Line("free memory", free), Line("usable", int(free * fraction), share)
    total, free = machine.memory_bytes, machine.memory_free_bytes
    limit = int(total * fraction)
    if free < limit and free_after_bytes is None:  # else a line of its own says what others have
        return Line("GPU memory", total), Line("usable", free, "others use the rest of the GPU")
    return Line("GPU memory", total), Line("usable", limit, share)


def _too_little(
    lines: Sequence[Line], room: int, wanted: int, page_size: int, kv_bytes_per_page: int, asked: bool
) -> ConfigError:
    parts = ", ".join(f"{line.name} {size(abs(line.size_bytes))}" for line in lines)
    need = f"{wanted * page_size} tokens need {size(wanted * kv_bytes_per_page)}"
    flags = "lower --max-total-tokens or raise --mem-fraction-static" if asked else "raise --mem-fraction-static"
    left = size(room) if room > 0 else "nothing"
    return ConfigError(
        f"Too little memory for the KV cache: {parts} leave {left}, but {need}; {flags}, "
        "lower --chunked-prefill-size, or take a smaller model.",
        param="--max-total-tokens" if asked else "--mem-fraction-static",
    )
