"""The options that say which prompts a benchmark sends and where its results go; the same for every subcommand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console

if TYPE_CHECKING:
    from sgl.bench.load import Run

PANEL = "Data set"


def _option(kind: Any, default: object, *flags: str, help: str, metavar: str) -> tuple[Any, object]:
    shown = str(default) if default not in (None, "") else False
    info = typer.Option(*flags, help=help, metavar=metavar, show_default=shown, rich_help_panel=PANEL)
    return Annotated[kind, info], default


OPTIONS: Mapping[str, tuple[Any, object]] = {
    "dataset_name": _option(
        str,
        "random",
        "--dataset-name",
        help="random, sharegpt (a file), generated-shared-prefix, or jsonl (a file).",
        metavar="NAME",
    ),
    "dataset_path": _option(
        str,
        "",
        "--dataset-path",
        help='File of sharegpt, or of jsonl: {"prompt": text or ids, "output_len": tokens} a line.',
        metavar="FILE",
    ),
    "num_prompts": _option(
        int | None, None, "--num-prompts", help="Requests; 100, or a whole jsonl file.", metavar="N"
    ),
    "seed": _option(int, 1, "--seed", help="Of the prompts and of the times they are sent at.", metavar="N"),
    "random_input": _option(
        int, 1024, "--random-input", "--random-input-len", help="Most tokens of a random prompt.", metavar="N"
    ),
    "random_output": _option(
        int, 128, "--random-output", "--random-output-len", help="Most tokens of its answer.", metavar="N"
    ),
    "random_range_ratio": _option(
        float,
        0.0,
        "--random-range-ratio",
        help="Least length as a part of the most; 1 makes all alike.",
        metavar="RATIO",
    ),
    "output_len": _option(
        int | None,
        None,
        "--sharegpt-output-len",
        help="Tokens of every answer, instead of what the file says.",
        metavar="N",
    ),
    "prefix_groups": _option(
        int, 8, "--gsp-num-groups", "--gen-num-groups", help="Prefixes of generated-shared-prefix.", metavar="N"
    ),
    "prompts_per_group": _option(
        int, 16, "--gsp-prompts-per-group", "--gen-prompts-per-group", help="Prompts with each of them.", metavar="N"
    ),
    "prefix_len": _option(
        int, 1024, "--gsp-system-prompt-len", "--gen-system-prompt-len", help="Tokens of a prefix.", metavar="N"
    ),
    "question_len": _option(
        int, 128, "--gsp-question-len", "--gen-question-len", help="Tokens that follow it.", metavar="N"
    ),
    "prefix_output_len": _option(
        int, 128, "--gsp-output-len", "--gen-output-len", help="Tokens of each answer.", metavar="N"
    ),
}
"""By field of `sgl.bench.data.DataOptions`."""


def with_data(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of the data set to a function, which receives them as ``data``, a dict."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "data"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
    ]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]

    def run(**arguments: Any) -> None:
        data = {name: arguments.pop(name) for name in OPTIONS}
        function(data=data, **arguments)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


class Progress:
    """A bar on standard error that counts requests; `run` is what it watches."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from sgl.bench.load import Run

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console.err())
        self._task = self._bar.add_task("requests", total=total)
        self._failed = 0
        self.run: Run = Run(on_outcome=self._count)

    def _count(self, outcome: Any) -> None:
        self._failed += bool(outcome.error)
        told = f"requests ([red]{self._failed} failed[/red])" if self._failed else "requests"
        self._bar.update(self._task, advance=1, description=told)

    def __enter__(self) -> Run:
        self._bar.start()
        return self.run

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def finish(result: Mapping[str, Any], block: str) -> None:
    """Prints the figures; exits with 130 after Ctrl-C and with 1 if requests failed.

    Raises:
        typer.Exit: for the two.
    """
    typer.echo(block)
    if result["first_error"]:
        console.complain(f"{result['failed']} requests failed; the first one: {result['first_error']}")
    if result["interrupted"]:
        console.err().print("Interrupted: the figures are of the requests that were over.", soft_wrap=True)
        raise typer.Exit(130)
    if result["failed"]:
        raise typer.Exit(1)


def block_of(title: str, rows: Mapping[str, object]) -> str:
    """Lines ``name: value`` under a title, in SGLang's form. A row whose value is None is a heading."""
    width = 50
    lines = [f" {title} ".center(width, "=")]
    for name, value in rows.items():
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append(name.center(width, "-") if value is None else f"{name + ':':<40} {shown}")
    return "\n".join([*lines, "=" * width])
