"""``sgl profile diff A B``: what takes longer and what less in the second of two traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.cli.profile_report import PAGE, TRACE, analysed, print_tables


def diff(
    a: Annotated[str, TRACE],
    b: Annotated[str, TRACE],
    output: Annotated[str, PAGE] = "",
    title: Annotated[str, typer.Option("--title", help="Of the page.", metavar="TEXT")] = "Two profiles",
) -> None:
    """Compare two traces per step: steps, phases, kernels and host code, the largest differences first."""
    old, new = (analysed(Path(path), "none") for path in (a, b))
    if output:
        from sgl.profiles.page import difference_page

        console.write_output(output, difference_page(old, new, title))
        return
    from sgl.profiles.tables import difference, facts

    for name, found in (("A", old), ("B", new)):
        console.out().print(f"{name}: {facts(found)}", markup=False)
    print_tables(difference(old, new))


command = command_of(diff)
