"""``sgl replay plans FILE``: executes the steps that ``--record-plans`` has written, and compares bit for bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of, with_config
from sgl.engine.base import sources
from sgl.engine.base.config import Given

if TYPE_CHECKING:
    from sgl.engine.base.types import RowOutput
    from sgl.engine.replay import Parting, PlanReplay

_QUIET = {"observe.log_level": Given("warning", "default", "the bar tells enough")}
_SHOWN_IDS = 8


@with_config("model", "cache", "kernel")
def plans(
    values: sources.Values,
    file: Annotated[str, typer.Argument(help="What `sgl serve --record-plans FILE` wrote.", metavar="FILE")],
) -> None:
    """Execute recorded steps again, without a scheduler, by the same model with the same options.

    Ends with 1 at the first step whose results differ in a bit.
    """
    from sgl.engine.replay import PlanReplay

    config = sources.configure({**_QUIET, **sources.with_demo_model(values)})
    with closing(PlanReplay(Path(file), config)) as replay:
        num_same, parting = _run(replay)
        needs = replay.needs
    if parting is None:
        typer.echo(f"{num_same} steps, {needs.num_slots} slots, {needs.num_pages} pages: the same bit for bit.")
        return
    typer.echo(f"{num_same} steps are the same; step {parting.step_id} is not, at request {parting.rid}:")
    for name, output in (("recorded", parting.recorded), ("now", parting.now)):
        typer.echo(f"  {name}: {_shown(output)}")
    raise typer.Exit(1)


command = command_of(plans)


def _run(replay: PlanReplay) -> tuple[int, Parting | None]:
    """How many steps came out the same, and the first that did not."""
    num_same = 0
    with console.bar() as bar:
        task = bar.add_task("steps", total=replay.needs.num_steps)
        for parting in replay.run():
            if parting is not None:
                return num_same, parting
            num_same += 1
            bar.update(task, advance=1)
    return num_same, None


def _shown(output: RowOutput) -> str:
    tokens = f"tokens {output.token_ids[:_SHOWN_IDS]}"
    numbers = [item.logprob for item in (*output.logprobs, *output.prompt_logprobs)][:_SHOWN_IDS]
    more = f", log-probabilities {numbers}" if numbers else ""
    pooled = f", {len(output.pooled)} bytes of a vector" if output.pooled else ""
    return tokens + more + pooled + (f", {output.error}" if output.error else "")
