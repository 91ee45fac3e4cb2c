"""``sgl profile torch -- COMMAND``: runs a command of sgl whose engine records steps, and says what they show."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of

COMMAND = typer.Argument(help="A command of sgl with its options.", metavar="-- COMMAND...", show_default=False)
OUTPUT = typer.Option("--output", "-o", help="Directory for what is recorded.", metavar="DIR", show_default=False)


def torch(
    words: Annotated[list[str], COMMAND],
    first: Annotated[int, typer.Option("--first", help="Steps that are not recorded before.", min=0, metavar="N")] = 10,
    steps: Annotated[int, typer.Option("--steps", help="Steps to record.", min=1, max=2000, metavar="N")] = 200,
    output: Annotated[str, OUTPUT] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Run a command of sgl and record steps of its engine with torch's profiler."""
    from sgl.cli.profile_report import print_summary
    from sgl.engine.base import env
    from sgl.profiles import capture

    directory = capture.make_directory(output or str(env.profiler_dir()), "")
    command = capture.with_torch(words, directory, first, steps)
    if dry_run:
        typer.echo(str(command))
        return
    before = set(capture.files_in(directory, "*.trace.json.gz"))
    status = command.run()
    traces = [path for path in capture.files_in(directory, "*.trace.json.gz") if path not in before]
    for path in traces:
        print_summary(path)
    if not traces and status == 0:  # else the command has said what is wrong
        hint = f"The engine of the command must compute more than {first} steps (--first)."
        console.complain("Nothing was recorded.", hint)
    raise typer.Exit(status or (0 if traces else 1))


command = command_of(torch)
