"""``sgl eval tool-calls``: whether the right functions are called, with the right arguments."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import asking_of, how, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def tool_calls(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[
        str, how("--data", help="JSONL with tools, messages (or prompt) and the expected calls.", metavar="FILE")
    ] = "",
    num_questions: Annotated[int, how("--num-questions", help="0 for all.", metavar="N")] = 0,
) -> None:
    """Offer functions and compare the calls with those that are right."""
    from sgl.bench.evals.tasks.tool_calls import ToolCalls

    task = ToolCalls(data, num_questions=num_questions or None, asking=asking_of(asking, chat=True))
    run_task(task, given, values, model, data=data, num_questions=num_questions, **asking)


command = command_of(tool_calls)
