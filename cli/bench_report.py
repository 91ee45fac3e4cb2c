"""``sgl bench report``: shows result files as tables, or writes them as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of

if TYPE_CHECKING:
    from sgl.bench.report import Table


def report(
    files: Annotated[list[str], typer.Argument(help="Files that --output-file wrote.", metavar="FILE...")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Write one HTML page instead of tables.", metavar="PAGE")
    ] = "",
    title: Annotated[str, typer.Option("--title", help="Of the page.", metavar="TEXT")] = "Benchmark report",
) -> None:
    """Show what result files say: medians by engine and work; as a page also latency curves and limits."""
    from sgl.bench.report import tables
    from sgl.bench.results import read

    results = [result for file in files for result in read(Path(file))]
    broken_off = sum(bool(result.raw.get("interrupted")) for result in results)
    if broken_off:
        console.err().print(
            f"{broken_off} results of runs that were broken off are not in the medians.", soft_wrap=True
        )
    if not output:
        for table in tables(results):
            _print(table)
        return
    from sgl.bench.report_page import page

    console.write_output(output, page(results, title))


command = command_of(report)


def _print(table: Table) -> None:
    from rich.table import Table as Shown
    from rich.text import Text

    title = f"{table.kind}: medians, and how far the farthest run is"
    shown = Shown(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("engine", "work"):
        shown.add_column(name, header_style="dim")
    for name in ("runs", *table.columns):
        shown.add_column(name, header_style="dim", justify="right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(console.printable(text)) for text in (row.engine, row.work, str(row.repeats), *row.cells)))
    console.out().print(shown, soft_wrap=False)
