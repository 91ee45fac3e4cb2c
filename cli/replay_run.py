"""``sgl replay DIR``: sends what was recorded to a server, with the original timing, and keeps the answers."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError


def run(
    recording: Annotated[
        str, typer.Argument(help="Folder of `sgl serve --record`, or a file of it or of a replay.", metavar="DIR")
    ],
    url: Annotated[
        str, typer.Option("--url", help="Of the server.", metavar="URL", show_default="http://127.0.0.1:30000")
    ] = "http://127.0.0.1:30000",
    speed: Annotated[
        str, typer.Option("--speed", help="How much faster than it came, like 2x.", metavar="FACTOR", show_default="1x")
    ] = "1x",
    output: Annotated[
        str, typer.Option("--output", "-o", help="New file for the answers, one a line.", metavar="FILE")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Ask for this one instead of what was asked for.", metavar="NAME")
    ] = "",
    api_key: Annotated[str, typer.Option("--api-key", help="Else OPENAI_API_KEY.", metavar="KEY")] = "",
) -> None:
    """Send recorded requests to a server, each as long after the first as it came, and compare the answers.

    Ctrl-C keeps what was answered. Ends with 1 if something is not answered that was when it was recorded.
    """
    from sgl.bench.load import run_until_interrupt
    from sgl.bench.replay.compare import compare
    from sgl.bench.replay.files import Writer, read
    from sgl.bench.replay.sender import Target, send_all
    from sgl.cli.bench_data import Progress
    from sgl.cli.replay_diff import show
    from sgl.engine.api.exchange import Exchange

    factor = _factor(speed)
    exchanges = read(Path(recording))
    target = Target(url, api_key or env.text("OPENAI_API_KEY"), model)
    target.check()
    answered: list[Exchange] = []
    with Writer(Path(output)) if output else nullcontext() as writer, Progress() as progress:

        def keep(exchange: Exchange) -> None:
            answered.append(exchange)
            if writer is not None:
                writer.write(exchange)

        outcomes = progress.new_run(len(exchanges))
        started_s = time.monotonic()
        run_until_interrupt(outcomes, send_all(outcomes, exchanges, target, factor, keep))
    typer.echo(f"{len(answered)} of {len(exchanges)} requests in {time.monotonic() - started_s:.1f} s.")
    failed = [outcome.error for outcome in outcomes.outcomes if outcome.error]
    if failed:
        console.complain(f"{len(failed)} are not answered any more; the first one: {failed[0]}")
    if answered:
        typer.echo("A is what was recorded, B what was answered now:")
        show(compare(exchanges, answered), most=3)
    if outcomes.interrupted:
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


command = command_of(run)


def _factor(text: str) -> float:
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0.001 <= factor <= 1e6:
        raise ConfigError(f"--speed must be a factor from 0.001 to 1e6, like 2x, got '{text}'.", param="--speed")
    return factor
