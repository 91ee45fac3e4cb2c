"""``sgl eval gsm8k``: grade school sums in words."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import asking_of, how, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def gsm8k(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[
        str, how("--data", "--data-path", help="test.jsonl as published; else the Hub.", metavar="FILE")
    ] = "",
    num_questions: Annotated[int, how("--num-questions", help="0 for all.", metavar="N")] = 200,
    num_shots: Annotated[int, how("--num-shots", help="Examples before each question.", metavar="N")] = 5,
    shots_from: Annotated[
        str,
        how(
            "--shots-from",
            help="train.jsonl; else the first questions of --data, which are then not asked.",
            metavar="FILE",
        ),
    ] = "",
) -> None:
    """Ask grade school sums in words (GSM8K), with worked examples before each."""
    from sgl.bench.evals.tasks.gsm8k import Gsm8k

    flags: dict[str, Any] = {"num_shots": num_shots, "num_questions": num_questions or None, "shots_from": shots_from}
    task = Gsm8k(data, asking=asking_of(asking), **flags)
    run_task(task, given, values, model, data=data, **flags, **asking)


command = command_of(gsm8k)
