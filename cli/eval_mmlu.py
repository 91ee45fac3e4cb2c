"""``sgl eval mmlu``: questions of 57 subjects, each with four answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sgl.cli.eval_options import HOW, asking_of, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def mmlu(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "--data-dir",
            help="The published folder, with dev/ and test/; else the Hub.",
            metavar="DIR",
            rich_help_panel=HOW,
        ),
    ] = "",
    num_subjects: Annotated[
        int,
        typer.Option("--nsub", "--num-subjects", help="The first ones; 0 for all.", metavar="N", rich_help_panel=HOW),
    ] = 0,
    num_questions: Annotated[
        int, typer.Option("--num-questions", help="Of all together; 0 for all.", metavar="N", rich_help_panel=HOW)
    ] = 0,
    num_shots: Annotated[
        int,
        typer.Option(
            "--num-shots",
            "--ntrain",
            help="Examples of the subject before each question.",
            metavar="N",
            rich_help_panel=HOW,
        ),
    ] = 5,
) -> None:
    """Ask multiple choice questions of many subjects (MMLU), with examples before each."""
    from sgl.bench.evals.tasks.mmlu import Mmlu

    flags: dict[str, Any] = {
        "num_shots": num_shots,
        "num_subjects": num_subjects or None,
        "num_questions": num_questions or None,
    }
    task = Mmlu(data, asking=asking_of(asking), **flags)
    run_task(task, given, values, model, data=data, **flags, **asking)


command = command_of(mmlu)
