"""``sgl profile py -- COMMAND``: runs a command of sgl and says which Python functions take its time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.cli.profile_torch import COMMAND, OUTPUT

_MOST = 30
_SHOWN_PARTS = 3


def py(
    words: Annotated[list[str], COMMAND],
    sampler: Annotated[
        Literal["auto", "py-spy", "own"],
        typer.Option("--sampler", help="py-spy looks from outside; own samples from within; auto prefers py-spy."),
    ] = "auto",
    output: Annotated[str, OUTPUT] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Run a command of sgl and sample the Python code of its processes."""
    from sgl.profiles import capture

    directory = capture.make_directory(output, "py")
    if sampler == "py-spy" or (sampler == "auto" and capture.is_installed("py-spy")):
        command = capture.with_py_spy(words, directory, 100)
        if not dry_run and not capture.is_installed("py-spy"):
            console.complain("py-spy is not installed.", "pip install py-spy, or use --sampler own.")
            raise typer.Exit(2)
    else:
        command = capture.with_sampler(words, directory)
    if dry_run:
        typer.echo(str(command))
        return
    before = {path: path.stat().st_mtime_ns for path in capture.files_in(directory, "*.speedscope.json")}
    status = command.run()
    now = capture.files_in(directory, "*.speedscope.json")
    made = [path for path in now if before.get(path) != path.stat().st_mtime_ns]
    if made:
        _print(made)
    else:
        console.complain("Nothing was recorded.")
    raise typer.Exit(status or (0 if made else 1))


command = command_of(py)


def _print(files: Sequence[Path]) -> None:
    from rich.table import Table
    from rich.text import Text

    from sgl.profiles.stacks import functions

    found = functions(files)
    all_s = sum(function.own_s for function in found)
    table = Table(title=f"{all_s:.2f} s of samples", title_justify="left", box=None, pad_edge=False)
    for title in ("own s", "own", "total s"):
        table.add_column(title, header_style="dim", justify="right")
    for title in ("function", "where"):
        table.add_column(title, header_style="dim", overflow="fold")
    for function in found[:_MOST]:
        share = f"{function.own_s / all_s:.1%}" if all_s else "-"
        place = "/".join(Path(function.place).parts[-_SHOWN_PARTS:])  # whole paths stand in the file
        texts = Text(console.printable(function.name)), Text(console.printable(place), style="dim")
        table.add_row(f"{function.own_s:.3f}", share, f"{function.total_s:.3f}", *texts)
    console.out().print(table, soft_wrap=False)
    for path in files:
        console.err().print(f"{path} (open it at https://speedscope.app)", soft_wrap=True, markup=False)
