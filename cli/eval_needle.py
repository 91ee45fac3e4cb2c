"""``sgl eval needle``: one sentence to be found in texts of several lengths, at several depths."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.bench_one_batch import numbers
from sgl.cli.eval_options import asking_of, how, run_task, with_questions
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_questions
def needle(
    values: sources.Values,
    given: dict[str, Any],
    asking: dict[str, Any],
    model: ModelArgument = "",
    lengths: Annotated[str, how("--lengths", help="Of the texts, in tokens.", metavar="N,...")] = "256,512,1024",
    depths: Annotated[
        str, how("--depths", help="Where the sentence stands, in percent.", metavar="N,...")
    ] = "0,25,50,75,100",
    num_questions: Annotated[int, how("--num-questions", help="Of every length and depth.", metavar="N")] = 4,
) -> None:
    """Hide a number in a text and ask for it."""
    from sgl.bench.evals.tasks.needle import Needle, depths_of

    task = Needle(
        numbers("--lengths", lengths), depths_of(depths), count=num_questions, asking=asking_of(asking, chat=True)
    )
    run_task(task, given, values, model, lengths=lengths, depths=depths, num_questions=num_questions, **asking)


command = command_of(needle)
