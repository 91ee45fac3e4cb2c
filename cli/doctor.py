"""``sgl doctor``: what this machine and this installation have, what is missing, and the lines that mend it.

Checkpoints are examined by its subcommand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.main import CONTEXT, Commands, Subcommand

if TYPE_CHECKING:
    from sgl.bench.doctor.environment import Finding
    from sgl.kernels.registry import KernelRow

COMMANDS: Mapping[str, Subcommand] = {
    "model": Subcommand(
        "sgl.cli.doctor_model", "Find what is wrong with a checkpoint, and the first layer that is not transformers'."
    ),
}

_MARKS = {"ok": ("ok", "green"), "weak": ("weak", "yellow"), "broken": ("broken", "bold red")}
_CEILINGS = ("read_bandwidth", "matmul_bf16", "matmul_int8", "gpu_read_bandwidth", "gpu_matmul_bf16")
_REFERENCE = "reference"
_WHY = "`sgl kernels` says why"


class Doctor(Commands):
    table = COMMANDS


app = typer.Typer(cls=Doctor, context_settings=CONTEXT, invoke_without_command=True, add_completion=False)


@app.callback()
def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every kernel.")] = False,
) -> None:
    """Report versions, devices, kernels and limits, what is missing, and the line that mends it.

    Ends with 1 if something will fail. `sgl doctor model DIR` examines a checkpoint.
    """
    if context.invoked_subcommand is None:
        _report(as_json)


command = typer.main.get_command(app)


def _report(as_json: bool) -> None:
    from sgl.bench import machine
    from sgl.bench.doctor.environment import examine
    from sgl.cli.bench_machine import own_kernels
    from sgl.engine.base import env
    from sgl.engine.base.device import open_device
    from sgl.engine.base.dtypes import torch_dtype
    from sgl.kernels.registry import describe

    with console.err().status("looking"):
        own = own_kernels()
        ceilings = machine.known(own)
        device = open_device("auto")
        rows = describe(device.kind, device.isa, torch_dtype("bfloat16"))
        has_gpu = device.kind != "cpu"
        findings = examine(has_gpu=has_gpu, cache=env.cache_dir(), compiler_trouble=own.missing)
    findings = [*findings, *_kernels(rows), _limits(ceilings.figures)]
    if as_json:
        told = {"machine": ceilings.machine, "ceilings": ceilings.figures, "kernels": {r.op: r.chosen for r in rows}}
        typer.echo(json.dumps({**told, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(ceilings.machine, findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _kernels(rows: Sequence[KernelRow]) -> list[Finding]:
    from sgl.bench.doctor.environment import Finding

    slow = [row.op for row in rows if row.chosen == _REFERENCE and row.alternatives]
    told = f"{len(rows) - len(slow)} of {len(rows)} ops have what is made for this device"
    if not slow:
        return [Finding("kernels", "ok", told)]
    return [Finding("kernels", "ok", f"{told}; in plain torch ({_WHY}): {', '.join(slow)}")]


def _limits(figures: Mapping[str, float]) -> Finding:
    from sgl.bench.doctor.environment import Finding
    from sgl.cli.bench_machine import ROWS

    shown = []
    for name in _CEILINGS:
        if name in figures:
            label, unit, scale = ROWS[name]
            shown.append(f"{label.partition(',')[0] if '{' in label else label} {figures[name] / scale:.0f} {unit}")
    if not shown:
        return Finding("limits", "weak", "never measured here: shares of the limit are unknown", "sgl bench machine")
    return Finding("limits", "ok", "; ".join(shown))


def _print(machine: Mapping[str, Any], findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console.out()
    device = f"{machine['device_name']}, {machine['cores']} cores ({machine['isa']}), {machine['memory_gib']} GiB"
    screen.print(Text(f"{device}, {machine['system']}\n", "bold"), soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.state]
        table.add_row(Text(mark, style), finding.topic, Text(console.printable(finding.told)))
        if finding.fix:
            table.add_row("", "", Text(f"  {finding.fix}", "cyan"))
    screen.print(table, soft_wrap=False)
