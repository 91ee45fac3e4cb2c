"""``sgl eval perplexity``: how well a text is foreseen."""

from __future__ import annotations

from typing import Annotated, Any

from sgl.cli.eval_options import how, run_task, with_run
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources

DATA = how("--data", help="A text, or JSONL with text in every line.", metavar="FILE")
WINDOW = how("--window", help="Tokens that are read at once.", metavar="N")


@with_run
def perplexity(
    values: sources.Values,
    given: dict[str, Any],
    model: ModelArgument = "",
    data: Annotated[str, DATA] = "",
    window: Annotated[int, WINDOW] = 512,
    stride: Annotated[
        int,
        how(
            "--stride",
            help="From one window to the next; less than a window gives every token more context. 0: a window.",
            metavar="N",
        ),
    ] = 0,
    num_windows: Annotated[int, how("--num-windows", help="0 for all.", metavar="N")] = 0,
) -> None:
    """Score every token of a text by what stands before it."""
    from sgl.bench.evals.tasks.perplexity import Perplexity

    task = Perplexity(data, window=window, stride=stride or None, num_windows=num_windows or None)
    run_task(task, given, values, model, data=data, window=window, stride=stride, num_windows=num_windows)


command = command_of(perplexity)
