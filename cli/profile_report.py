"""``sgl profile report TRACE``: what a trace of torch's profiler or of nsys says, as tables or as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.profiles.analysis import Analysis
    from sgl.profiles.tables import Table
    from sgl.profiles.trace import Trace
    from sgl.profiles.work import Ceilings

TRACE = typer.Argument(help="A trace (.trace.json.gz) or nsys's SQLite export.", metavar="TRACE")
PAGE = typer.Option("--output", "-o", help="Write one HTML page instead of tables.", metavar="PAGE")
MACHINE = typer.Option(
    "--machine",
    help="Ceilings of the machine it was recorded on: the JSON of `sgl bench machine --json`, or none; by default they "
    "are measured if that is this machine.",
    metavar="FILE",
)


_MIN_NAME = 16


def report(
    trace: Annotated[str, TRACE],
    output: Annotated[str, PAGE] = "",
    machine: Annotated[str, MACHINE] = "",
    title: Annotated[str, typer.Option("--title", help="Of the page.", metavar="TEXT")] = "Profile",
) -> None:
    """Show where the time of recorded steps went: phases, layers, kernels against the machine's ceilings, host code."""
    found = analysed(Path(trace), machine)
    if not output:
        print_analysis(found)
        return
    from sgl.profiles.page import page

    console.write_output(output, page(found, title))


command = command_of(report)


def analysed(path: Path, machine: str) -> Analysis:
    """
    Raises:
        SglError: it cannot be read, or has no steps.
        ConfigError: ``machine`` cannot be used.
    """
    from sgl.profiles.analysis import analyse
    from sgl.profiles.trace import read

    with console.err().status(f"reading {path.name}"):
        trace = read(path)
    return analyse(trace, _ceilings(trace, machine))


def _ceilings(trace: Trace, machine: str) -> Ceilings:
    from sgl.profiles.work import Ceilings

    device = "gpu" if any(event.kind == "device" for event in trace.events) else "cpu"
    if machine == "none":
        return Ceilings()
    if machine:
        try:
            figures = json.loads(Path(machine).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--machine {machine} cannot be read as JSON: {error}.", param="--machine") from None
        if not isinstance(figures, dict):
            raise ConfigError(f"--machine {machine} is not the JSON of `sgl bench machine`.", param="--machine")
        return Ceilings.of(figures, device)
    return Ceilings.of(_measured(trace.facts.get("machine")), device)


def _measured(recorded_on: object) -> Mapping[str, Any]:
    """The figures of this machine, if the trace was recorded on it."""
    from sgl.bench import machine, provenance

    if not isinstance(recorded_on, dict) or recorded_on.get("fingerprint") != provenance.describe()["fingerprint"]:
        return {}
    from sgl.cli.bench_machine import own_kernels, this_gpu

    with console.err().status("measuring the machine's ceilings") as status:
        found = machine.measure(
            own_kernels(), gpu=this_gpu(), note=lambda what: status.update(f"measuring the machine: {what}")
        )
    if found.disturbed:
        console.err().print("Other programs used the cores meanwhile: the ceilings are too low.", soft_wrap=True)
    return found.figures


def print_analysis(found: Analysis) -> None:
    """All tables, then the opportunities."""
    from sgl.profiles.tables import facts, tables

    screen = console.out()
    screen.print(facts(found), markup=False)
    print_tables(tables(found))
    _print_opportunities(found)
    for note in found.notes:
        console.err().print(note, soft_wrap=True, markup=False)


def print_summary(path: Path) -> None:
    """What a trace that was just recorded says in short, without knowing the machine."""
    from sgl.profiles.tables import facts, tables

    found = analysed(path, "none")
    console.out().print(facts(found), markup=False)
    print_tables(tables(found)[:1])
    typer.echo(str(path))
    told = f"All of it: sgl profile report {path}; as a timeline: https://ui.perfetto.dev"
    console.err().print(told, soft_wrap=True, markup=False)


def print_tables(tables: Sequence[Table]) -> None:
    """One below the other; what a terminal is too narrow for is left out from the right."""
    from rich.table import Table as Shown
    from rich.text import Text

    screen = console.out()
    for table in tables:
        count = _fitting(table, screen.width)
        shown = Shown(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        shown.add_column(table.columns[0], min_width=_MIN_NAME, overflow="ellipsis", no_wrap=True)
        for name in table.columns[1:count]:
            shown.add_column(name, header_style="dim", justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(Text(console.printable(cell)) for cell in row[:count]))
        screen.print()
        screen.print(shown, soft_wrap=False)
        if table.note:
            screen.print(Text(table.note, style="dim"), soft_wrap=True)


def _fitting(table: Table, width: int) -> int:
    """How many of its columns there is room for; at least two."""
    left = width - _MIN_NAME
    for number, name in enumerate(table.columns[1:], start=1):
        left -= 2 + max(map(len, (name, *(row[number] for row in table.rows))))
        if left < 0 and number > 1:
            return number
    return len(table.columns)


def _print_opportunities(found: Analysis) -> None:
    from rich.text import Text

    from sgl.profiles.advice import opportunities

    screen = console.out()
    screen.print("\nLargest opportunities", style="bold")
    for number, one in enumerate(opportunities(found), start=1):
        screen.print(Text(f"{number}. {console.printable(one.text)}"), soft_wrap=True)
