"""A program that answers prompts twice, with steps as they are written and compiled by torch, and compares.

It prints how many graphs torch compiled anew and how many it found in its cache. A device whose captures are the
functions themselves stands for a GPU: what torch compiles on a CPU is what is written in C++ there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from sgl.engine.base.device import CpuDevice
from sgl.engine.runtime.graphs import GraphOptions, Graphs
from tests.runtime.test_graphs import check, load, make_executor, make_inits, play


def main(path: Path) -> None:
    torch.set_num_threads(1)
    model, inits = load(path), make_inits(3)
    expected = play(make_executor(model, CpuDevice(), None), inits)
    options = GraphOptions(rows=(1, 3), min_speedup=0, compile_rows=3)
    executor = make_executor(model, CpuDevice(is_async=True), options)
    begun_s = time.monotonic()
    while executor.prepare():
        pass
    seconds = time.monotonic() - begun_s
    runner = executor.loaded.runner
    assert isinstance(runner, Graphs) and runner.sizes == [(1, 1), (1, 3)]
    check(play(executor, inits), expected)
    inductor = counters["inductor"]
    found = {"compiled": inductor["fxgraph_cache_miss"], "cached": inductor["fxgraph_cache_hit"], "seconds": seconds}
    print(json.dumps({**found, "breaks": sum(counters["graph_break"].values())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
