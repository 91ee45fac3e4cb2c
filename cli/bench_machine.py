"""``sgl bench machine``: measures what this machine can do and shows it as a table or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgl.cli import console
from sgl.cli.options import command_of

if TYPE_CHECKING:
    from sgl.bench.machine import Ceilings, Kernels, Layer, Make
    from sgl.engine.base.device import Device

ROWS = {
    "read_bandwidth": ("memory: read, {threads}", "GB/s", 1e9),
    "copy_bandwidth": ("memory: copy, read and written", "GB/s", 1e9),
    "matmul_fp32": ("matrix product, fp32", "GFLOP/s", 1e9),
    "matmul_bf16": ("matrix product, bf16", "GFLOP/s", 1e9),
    "matmul_int8": ("matrix product, int8", "GOP/s", 1e9),
    "gemv_bf16": ("engine: linear layer, bf16, 1 row", "GB/s", 1e9),
    "gemv_int8": ("engine: linear layer, int8, 1 row", "GB/s", 1e9),
    "gemv_int4": ("engine: linear layer, int4, 1 row", "GB/s", 1e9),
    "gemm_bf16": ("engine: linear layer, bf16, 512 rows", "GFLOP/s", 1e9),
    "gemm_int8": ("engine: linear layer, int8, 512 rows", "GOP/s", 1e9),
    "gemm_int4": ("engine: linear layer, int4, 512 rows", "GOP/s", 1e9),
    "gpu_read_bandwidth": ("GPU memory: read", "GB/s", 1e9),
    "gpu_copy_bandwidth": ("GPU memory: copy, read and written", "GB/s", 1e9),
    "gpu_matmul_bf16": ("GPU matrix product, bf16", "TFLOP/s", 1e12),
    "gpu_matmul_fp8": ("GPU matrix product, fp8", "TFLOP/s", 1e12),
    "gpu_launch": ("GPU launch", "us", 1e-6),
    "gpu_graph_launch": ("GPU launch within a graph", "us", 1e-6),
    "gpu_round_trip": ("GPU launch and wait", "us", 1e-6),
    "native_call": ("engine: empty native call, 1 thread", "us", 1e-6),
    "thread_team": ("engine: start and barrier of threads", "us", 1e-6),
    "python_call": ("Python call", "us", 1e-6),
    "torch_op": ("torch operation on one number", "us", 1e-6),
}
"""What is shown: title, unit, and how large the unit is."""

CEILINGS = {
    **dict.fromkeys(("gemv_bf16_read", "gemv_int8_read", "gemv_int4_read"), "of the read bandwidth"),
    "matmul_bf16": "of torch's bf16",
    "matmul_int8": "of torch's int8",
}


def machine(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: bytes, operations and seconds.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure everything; else only the bandwidth is not from the cache.")
    ] = False,
) -> None:
    """Measure this machine's limits: memory bandwidth, matrix products, the engine's kernels, call costs."""
    from sgl.bench.machine import measure

    with console.err().status("preparing") as status:
        ceilings = measure(
            own_kernels(), gpu=this_gpu(), fresh=fresh, note=lambda what: status.update(f"measuring: {what}")
        )
    if as_json:
        typer.echo(json.dumps(ceilings.to_dict(), indent=2))
    else:
        _print(ceilings)
    if ceilings.interrupted:
        raise typer.Exit(130)


command = command_of(machine)


def this_gpu() -> Device | None:
    """The one to measure, if there is one."""
    from sgl.engine.base.device import open_device

    device = open_device("auto")
    return None if device.kind == "cpu" else device


def own_kernels() -> Kernels:
    """The C++ kernels in every format, or why there are none."""
    from sgl.bench.machine import Kernels
    from sgl.kernels.cpu import native

    reason = native.missing()
    if reason:
        return Kernels("none", {}, lambda: None, lambda count: None, missing=reason)
    library = native.library()
    nothing = (0,) * len(library.sgl_kv_store.argtypes)  # no tokens to store
    return Kernels(
        build=library._name,
        layers=_layers(),
        call=lambda: library.sgl_kv_store(*nothing),
        set_threads=lambda count: native.set_threads(library, count),
    )


def _layers() -> dict[str, Make]:
    """The linear layers by weight format."""
    from sgl.kernels.cpu import linear
    from sgl.kernels.ops.linear import QuantizedWeight

    def quantized(values: Any, scales: Any, bits: Literal[4, 8], group: int) -> Layer:
        return linear.linear_quantized(QuantizedWeight(values, scales, None, bits, group), None, "plain")

    return {"bf16": lambda weight: linear.linear(weight, None, "plain"), "int8": quantized, "int4": quantized}


def _print(ceilings: Ceilings) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = ceilings.machine
    title = f"{facts['device_name']}, {facts['cores']} cores ({facts['isa']}), {facts['fingerprint']}"
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify)
    for count, value in list(ceilings.read_by_threads.items())[:-1]:
        table.add_row(f"memory: read, {_threads(count)}", _number(value / 1e9), "GB/s", "")
    for name, (label, unit, scale) in ROWS.items():
        if name in ceilings.figures:
            label = label.format(threads=_threads(max(ceilings.read_by_threads)))
            table.add_row(label, _number(ceilings.figures[name] / scale), unit, Text(_remark(ceilings, name), "dim"))
    console.out().print(table, soft_wrap=False)
    if ceilings.disturbed:
        told = f"Other programs used the cores ({ceilings.switches_per_s:.0f} switches per second)"
        console.err().print(f"{told}: the figures are too low and not kept.", soft_wrap=True)
    if ceilings.note:
        console.err().print(f"The engine's C++ kernels were not measured: {ceilings.note}.", soft_wrap=True)


def _remark(ceilings: Ceilings, name: str) -> str:
    from sgl.bench.machine import SHARES

    share = ceilings.share(name)
    of = "" if share is None else f"{share:.0%} {CEILINGS[SHARES[name]]}"
    return ", ".join(filter(None, [of, "cached" if name in ceilings.cached else ""]))


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
