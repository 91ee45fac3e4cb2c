"""Traces made by hand: what they hold is known without the code that reads them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

CATEGORIES = {"span": "user_annotation", "op": "cpu_op", "native": "native", "launch": "cuda_runtime"}


def event(kind: str, name: str, begin: float, duration: float, **args: Any) -> dict[str, Any]:
    """As torch writes it, on the one thread that there is."""
    times = {"ts": begin, "dur": duration}
    return {"ph": "X", "cat": CATEGORIES[kind], "name": name, "pid": 1, "tid": 2, **times, "args": args}


def kernel(name: str, begin: float, duration: float, correlation: int) -> dict[str, Any]:
    """Work of a device."""
    place = {"pid": 0, "tid": 7, "ts": begin, "dur": duration}
    return {"ph": "X", "cat": "kernel", "name": name, **place, "args": {"correlation": correlation}}


def step(at: float) -> list[dict[str, Any]]:
    """A step of 100 us on a CPU: 10 schedule, 60 forward (50 of the model, two layers of 20), 20 sample, 10 nothing."""
    layers = [
        one
        for layer in (0, 1)
        for one in (
            event("span", f"layer {layer}", at + 14 + 22 * layer, 20),
            event("native", "qkv", at + 14 + 22 * layer, 15, layer=layer),
            event("native", "attention", at + 29 + 22 * layer, 5, layer=layer),
        )
    ]
    return [
        event("span", "step", at, 100),
        event("span", "schedule", at, 10),
        event("span", "forward", at + 10, 60),
        event("span", "model", at + 12, 50),
        *layers,
        event("span", "logits", at + 63, 6),
        event("op", "aten::empty", at + 64, 1),
        event("span", "sample", at + 75, 20),
        event("op", "aten::add", at + 76, 8),
        event("op", "aten::copy_", at + 78, 2),
    ]


COST = {
    "linears": [{"format": "bf16", "params": 3000, "size_bytes": 6000}],
    "head": {"format": "bf16", "params": 500, "size_bytes": 1000},
    "attention": [{"num_layers": 2, "flops_per_pair": 8, "kv_bytes_per_token": 16}],
    "format": "bf16",
    "products": [
        {"name": "qkv", "format": "bf16", "params": 1500, "size_bytes": 3000, "activation_bytes_per_token": 10}
    ],
}


def write(path: Path, events: list[dict[str, Any]], num_steps: int = 0) -> Path:
    """A file that says of each step that it had one row: 4 new tokens behind 6, of which one got scores."""
    steps = [{"id": i, "rows": [[6, 4]], "num_logits": 1} for i in range(num_steps)]
    content = {"schemaVersion": 1, "sgl": {"schema": 1, "cost": COST, "steps": steps}, "traceEvents": events}
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
