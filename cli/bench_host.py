"""``sgl bench host``: measures the engine's host side and shows it beside its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.host import Figure


def host(
    rounds: Annotated[int, typer.Option("--rounds", help="Measured rounds; medians are shown.", metavar="N")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    output_file: Annotated[
        str, typer.Option("--output-file", "--result-filename", help="Append the result as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Measure what the host costs beside the model: prefix cache, scheduler, batches, messages, streaming."""
    if rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, got {rounds}.", param="--rounds")
    import json

    from sgl.bench.host import measure, results
    from sgl.bench.others import Usage
    from sgl.bench.provenance import append, check_output, describe, versions

    check_output(output_file)
    before = Usage.now()
    with console.err().status("measuring") as status:
        figures = measure(rounds, note=status.update)
    before.check(Usage.now())
    line = {"kind": "host", "versions": versions(), "machine": describe(), "figures": results(figures)}
    if output_file:
        append(output_file, line)
    if as_json:
        typer.echo(json.dumps(line, indent=2))
    else:
        _print(figures)


command = command_of(host)


def _print(figures: list[Figure]) -> None:
    from rich.table import Table

    table = Table(title="processor time; medians and the best round", title_justify="left", box=None, pad_edge=False)
    for title in ("", "median", "best", "unit", "target"):
        table.add_column(title, header_style="dim", justify="right" if title in ("median", "best") else "left")
    for figure in figures:
        sign = "at most" if figure.unit == "us" else "at least"
        target = "" if figure.target is None else f"{sign} {figure.target:,g}{'' if figure.met else ' (missed)'}"
        table.add_row(figure.title, _number(figure.median), _number(figure.best), figure.unit, target)
    console.out().print(table, soft_wrap=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
