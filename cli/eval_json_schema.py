"""``sgl eval json-schema``: whether structured output is valid."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import asking_of, how, run_task, with_questions
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
        how("--data", help="JSONL with prompt (or messages) and schema; else a few that are built in.", metavar="FILE"),
    ] = "",
    num_questions: Annotated[int, how("--num-questions", help="0 for all.", metavar="N")] = 0,
    unconstrained: Annotated[
        bool, how("--unconstrained", help="Only ask for the schema, do not hold the model to it.")
    ] = False,
) -> None:
    """Ask for JSON under schemas and check it against them."""
    from sgl.bench.evals.tasks.json_schema import JsonSchema

    flags: dict[str, Any] = {"num_questions": num_questions or None, "is_held": not unconstrained}
    task = JsonSchema(data, asking=asking_of(asking, chat=True), **flags)
    run_task(task, given, values, model, data=data, **flags, **asking)


command = command_of(json_schema)
