"""``sgl eval demo``: the demo model's skills, offline; what its model card says."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import how, run_task, with_run
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources


@with_run
def demo(
    values: sources.Values,
    given: dict[str, Any],
    model: ModelArgument = "",
    skills: Annotated[str, how("--skills", help="Some of them, by commas; else all.", metavar="NAME,...")] = "",
    num_questions: Annotated[
        int, how("--num-questions", help="Of each skill, which may hold fewer.", metavar="N")
    ] = 400,
    seed: Annotated[int, how("--seed", help="Which held-out items; 1 is the card's.", metavar="N")] = 1,
) -> None:
    """Ask what the demo model was trained for and has not seen; whole answers must match."""
    from sgl.bench.evals.tasks.demo import Demo

    task = Demo([name for name in skills.split(",") if name], num_questions, seed)
    run_task(task, given, values, model, skills=skills, num_questions=num_questions, seed=seed)


command = command_of(demo)
