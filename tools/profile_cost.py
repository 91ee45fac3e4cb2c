"""Measures what profiles cost: the same requests with and without, in many short pairs. Judges nothing.

python -m tools.profile_cost spans --model assets/demo      # spans that nobody records, against none
python -m tools.profile_cost recording --model assets/demo  # torch's profiler, against spans that nobody records
python -m tools.profile_cost control --model assets/demo    # one and the same twice: what the machine adds by itself
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import sgl
from sgl.engine.base import trace

PROMPT = list(range(20, 36))
_NOTHING: AbstractContextManager[None] = nullcontext()

Window = Callable[[], float]
"""Runs a request; returns the seconds that it took."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("spans", "recording", "control"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=60, help="decode steps of a window")
    given = parser.parse_args()
    with sgl.Engine(model_path=given.model, disable_radix_cache=True, cpu_threads=1, log_level="error") as engine:
        ratios = measure(engine, given.what, given.pairs, given.tokens)
    low, high = interval(ratios)
    told = f"{given.what}: {100 * (statistics.median(ratios) - 1):+.2f}%"
    print(f"{told} (95%: {100 * (low - 1):+.2f}% to {100 * (high - 1):+.2f}%), {len(ratios)} pairs")


def measure(
    engine: sgl.Engine, what: Literal["spans", "recording", "control"], count: int, num_tokens: int
) -> list[float]:
    """The time with, by that without, of every pair; which of the two comes first alternates."""
    params: dict[str, Any] = {"max_new_tokens": num_tokens, "ignore_eos": True, "temperature": 0}

    def window() -> float:
        begin_s = time.perf_counter()
        engine.generate(input_ids=PROMPT, sampling_params=params)
        return time.perf_counter() - begin_s

    def without_spans() -> float:
        with_span(lambda name: _NOTHING)
        took_s = window()
        with_span(trace.span)
        return took_s

    def recorded() -> float:
        engine.start_profile()
        took_s = window()
        Path(engine.stop_profile()).unlink(missing_ok=True)
        return took_s

    users = [m for name, m in sys.modules.items() if name.startswith("sgl.") and vars(m).get("span") is trace.span]

    def with_span(span: Callable[[str], AbstractContextManager[object]]) -> None:
        for module in users:
            vars(module)["span"] = span

    pairs: dict[str, tuple[Window, Window]] = {
        "spans": (window, without_spans),
        "recording": (recorded, window),
        "control": (window, window),
    }
    with_it, without = pairs[what]
    for _ in range(10):
        window()
    ratios = []
    for number in range(count):
        if number % 2:
            first_s = with_it()
            ratios.append(first_s / without())
        else:
            first_s = without()
            ratios.append(with_it() / first_s)
    return ratios


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, 95%, by order statistics: nothing is assumed of the distribution."""
    ordered, count = sorted(ratios), len(ratios)
    rank = max(math.floor(count / 2 - 0.98 * math.sqrt(count)), 0)
    return ordered[rank], ordered[count - 1 - rank]


if __name__ == "__main__":
    main()
