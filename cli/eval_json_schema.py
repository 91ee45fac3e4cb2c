"""``sgl eval json-schema``: whether structured output is valid."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sgl.cli.eval_options import HOW, asking_of, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def json_schema(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="JSONL with prompt (or messages) and schema; else a few that are built in.",
            metavar="FILE",
            rich_help_panel=HOW,
        ),
    ] = "",
    num_questions: Annotated[
        int, typer.Option("--num-questions", help="0 for all.", metavar="N", rich_help_panel=HOW)
    ] = 0,
    unconstrained: Annotated[
        bool,
        typer.Option(
            "--unconstrained", help="Only ask for the schema, do not hold the model to it.", rich_help_panel=HOW
        ),
    ] = False,
) -> None:
    """Ask for JSON under schemas and check it against them."""
    from sgl.bench.evals.tasks.json_schema import JsonSchema

    flags: dict[str, Any] = {"num_questions": num_questions or None, "is_held": not unconstrained}
    task = JsonSchema(data, asking=asking_of(asking, chat=True), **flags)
    run_task(task, given, values, model, data=data, **flags, **asking)


command = command_of(json_schema)
