"""``sgl profile nsys -- COMMAND``: runs a command of sgl under nsys, with ranges for steps and layers."""

from __future__ import annotations

import importlib.util
import shlex
from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.cli.profile_torch import COMMAND, OUTPUT


def nsys(
    words: Annotated[list[str], COMMAND],
    output: Annotated[str, OUTPUT] = "",
    nsys_args: Annotated[
        str, typer.Option("--nsys-args", help="More options for nsys, such as '--delay 60 --duration 70'.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Run a command of sgl under NVIDIA's nsys: kernels, also those of captured graphs, and our ranges."""
    from sgl.profiles import capture

    directory = capture.make_directory(output, "nsys")
    command = capture.with_nsys(words, directory / "sgl", shlex.split(nsys_args))
    if dry_run:
        typer.echo(str(command))
    if not capture.is_installed("nsys"):
        told = "nsys is not installed. On Ubuntu, as root:"
        if dry_run:
            console.err().print(f"{told}\n{capture.NSYS_INSTALL}", soft_wrap=True, markup=False)
            return
        console.complain(told, capture.NSYS_INSTALL)
        raise typer.Exit(2)
    if importlib.util.find_spec("nvtx") is None:
        told = "The package nvtx is not installed: there will be kernels, but no steps and layers (pip install nvtx)."
        console.err().print(told, soft_wrap=True)
    if dry_run:
        return
    status = command.run()
    database = directory / "sgl.sqlite"
    if database.exists():
        typer.echo(str(database))
        console.err().print(f"Read it with: sgl profile report {database}", soft_wrap=True, markup=False)
    raise typer.Exit(status)


command = command_of(nsys)
