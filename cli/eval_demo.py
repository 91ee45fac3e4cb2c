"""``sgl eval demo``: the demo model's skills, offline; what its model card says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sgl.cli.eval_options import HOW, run_task, with_run
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_run
def demo(
    values: sources.Values,
    given: dict[str, Any],
    model: ModelArgument = "",
    skills: Annotated[
        str,
        typer.Option("--skills", help="Some of them, by commas; else all.", metavar="NAME,...", rich_help_panel=HOW),
    ] = "",
    num_questions: Annotated[
        int,
        typer.Option("--num-questions", help="Of each skill, which may hold fewer.", metavar="N", rich_help_panel=HOW),
    ] = 400,
    seed: Annotated[
        int, typer.Option("--seed", help="Which held-out items; 1 is the card's.", metavar="N", rich_help_panel=HOW)
    ] = 1,
) -> None:
    """Ask what the demo model was trained for and has not seen; whole answers must match."""
    from sgl.bench.evals.tasks.demo import Demo

    task = Demo([name for name in skills.split(",") if name], num_questions, seed)
    run_task(task, given, values, model, skills=skills, num_questions=num_questions, seed=seed)


command = command_of(demo)
