"""``sgl eval mmlu``: questions of 57 subjects, each with four answers."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import asking_of, how, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def mmlu(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[
        str, how("--data", "--data-dir", help="The published folder, with dev/ and test/; else the Hub.", metavar="DIR")
    ] = "",
    num_subjects: Annotated[int, how("--nsub", "--num-subjects", help="The first ones; 0 for all.", metavar="N")] = 0,
    num_questions: Annotated[int, how("--num-questions", help="Of all together; 0 for all.", metavar="N")] = 0,
    num_shots: Annotated[
        int, how("--num-shots", "--ntrain", help="Examples of the subject before each question.", metavar="N")
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
