"""``sgl profile live URL``: has a running server record steps, waits for them and says where the trace is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base import env

if TYPE_CHECKING:
    from sgl.profiles.live import LiveProfile

_POLL_S = 0.2


def live(
    url: Annotated[str, typer.Argument(help="Of the server.", metavar="URL")] = "http://127.0.0.1:30000",
    steps: Annotated[int, typer.Option("--steps", help="Steps to record.", min=1, max=10_000, metavar="N")] = 20,
    output_dir: Annotated[
        str,
        typer.Option("--output-dir", help="On the server, below its $SGLANG_TORCH_PROFILER_DIR.", metavar="DIR"),
    ] = "",
    shapes: Annotated[bool, typer.Option("--shapes", help="Record the shapes of tensors, too.")] = False,
    stacks: Annotated[bool, typer.Option("--stacks", help="Record the places in the source, too; slow.")] = False,
    api_key: Annotated[str, typer.Option("--api-key", help="The server's admin key.", metavar="KEY")] = "",
) -> None:
    """Have a running server record its next steps; Ctrl-C ends the recording early."""
    from sgl.profiles.live import LiveProfile

    with LiveProfile(url, api_key or env.text("OPENAI_API_KEY")) as profile:
        profile.start(steps, output_dir, with_stack=stacks, record_shapes=shapes)
        path = _wait(profile, steps)
    if not path:
        console.complain("Nothing was recorded: the server computed no step meanwhile.", "Send it requests.")
        raise typer.Exit(1)
    if not Path(path).is_file():
        console.err().print("The trace is on the server's machine:", soft_wrap=True)
        typer.echo(path)
        return
    from sgl.cli.profile_report import print_summary

    print_summary(Path(path))


command = command_of(live)


def _wait(profile: LiveProfile, steps: int) -> str:
    """The trace; empty if it was interrupted before there was a step."""
    with console.bar(transient=True) as bar:
        task = bar.add_task("steps", total=steps)
        try:
            while (status := profile.status()).is_recording:
                waits = "waiting for requests" if not status.num_steps else "steps"
                bar.update(task, completed=status.num_steps, description=waits)
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            has_steps = profile.status().num_steps > 0
            profile.stop()
            return profile.status().path if has_steps else ""
    return status.path
