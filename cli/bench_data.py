"""The options that say which prompts a benchmark sends and where its results go; the same for every subcommand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from sgl.cli import console
from sgl.cli.options import Options, option, with_options

if TYPE_CHECKING:
    from sgl.bench.load import Run
    from sgl.bench.series import Line

PANEL = "Data set"


_option = partial(option, panel=PANEL)

OPTIONS: Options = {
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
        help='File of sharegpt, or of jsonl: {"prompt": text or ids, "output_len": tokens} a line; with "timestamp" '
        '(seconds) or "timestamp_ms" a trace.',
        metavar="FILE",
    ),
    "num_prompts": _option(
        int | None, None, "--num-prompts", help="Conversations; 100, or a whole jsonl file.", metavar="N"
    ),
    "seed": _option(int, 1, "--seed", help="Of the prompts and of the times they are sent at.", metavar="N"),
    "turns": _option(
        int, 1, "--turns", help="Questions of a conversation of random or sharegpt, asked in turn.", metavar="N"
    ),
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


CONSTRAINT: Options = {
    "json_schema": _option(str, "", "--json-schema", help="File with a JSON schema for all answers.", metavar="FILE"),
    "regex": _option(str, "", "--regex", help="Regular expression that all answers match.", metavar="TEXT"),
    "ebnf": _option(str, "", "--ebnf", help="File with an EBNF grammar for all answers.", metavar="FILE"),
}
"""By name in `sgl.bench.constraint.chosen`, and in ``sampling_params``."""


RUNS = "Runs"
WARMUP = typer.Option(
    "--warmup-requests",
    help="Requests before the measured ones.",
    metavar="N",
    min=0,
    show_default="1",
    rich_help_panel=RUNS,
)
MIN_LIMIT = typer.Option(
    "--min-limit",
    help="Exit with 1 below this share of the machine's limit: 0.7, or by phase like decode=0.7,prefill=0.5.",
    metavar="SHARE",
    rich_help_panel=RUNS,
)
PROFILE = typer.Option(
    "--profile",
    help="Record every run with torch's profiler, below $SGLANG_TORCH_PROFILER_DIR: slower, and figures mean less.",
    rich_help_panel=RUNS,
)
PEER_MODEL = typer.Option(
    "--peer-model",
    help="The model in the other engine's format: a GGUF file, a directory of OpenVINO IR; a server's name of it.",
    metavar="PATH",
    rich_help_panel=RUNS,
)
PEER_PYTHON = typer.Option(
    "--peer-python",
    help="Interpreter that has the other engine, if not this one: /path/python, or llama-cpp=/path/python,...",
    metavar="PATH",
    rich_help_panel=RUNS,
)
OUTPUT_DETAILS = typer.Option(
    "--output-details", help="Also record every request: the curves of `sgl bench report`.", rich_help_panel=RUNS
)
OUTPUT_FILE = typer.Option(
    "--output-file", "--result-filename", help="Append every run as JSON.", metavar="FILE", rich_help_panel=RUNS
)


def repeats_option(default: int) -> Any:
    return typer.Option(
        "--repeats",
        help="Measured runs; 6 have a 95% interval.",
        metavar="N",
        show_default=str(default),
        rich_help_panel=RUNS,
    )


def cache_state_option(default: str) -> Any:
    return typer.Option(
        "--cache-state",
        help="Prefix cache before each run: cold (emptied), warm (has the prompts) or any. It is checked.",
        metavar="STATE",
        show_default=default,
        rich_help_panel=RUNS,
    )


def with_data(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of the data set to a function, which receives them as ``data``, a dict."""
    return with_options("data", OPTIONS)(function)


def with_constraint(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that keep answers to a grammar to a function, which receives them as ``constraint``, a dict."""
    return with_options("constraint", CONSTRAINT)(function)


class Progress:
    """A bar on standard error that counts the requests of all runs."""

    def __init__(self) -> None:
        self._bar = console.bar()
        self._task = self._bar.add_task("requests", total=None)
        self._failed = 0

    def new_run(self, total: int) -> Run:
        """What takes the outcomes of the next run; all runs have ``total`` requests together."""
        from sgl.bench.load import Run

        self._bar.update(self._task, total=total)
        return Run(on_outcome=self._count)

    def _count(self, outcome: Any) -> None:
        self._failed += bool(outcome.error)
        told = f"requests ([red]{self._failed} failed[/red])" if self._failed else "requests"
        self._bar.update(self._task, advance=1, description=told)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def warn(*lines: Line) -> None:
    """Says what weakens runs, each thing once."""
    notes: list[str] = []
    for line in lines:
        notes += line.notes
        if line.figures.get("bandwidth_moved"):
            notes.append("The memory bandwidth moved by more than 10% during a run: others use this machine.")
        if line.figures["first_error"]:
            notes.append(f"{line.figures['failed']} requests failed; the first one: {line.figures['first_error']}")
        if line.run.interrupted:
            notes.append("Interrupted: the figures are of the requests that were over.")
    for note in dict.fromkeys(notes):
        console.err().print(console.printable(note), soft_wrap=True, markup=False)


def finish(lines: Sequence[Line], least: Mapping[str, float]) -> None:
    """Ends a benchmark: 130 after Ctrl-C; 1 if requests failed or the median share of the limit was less than asked.

    Raises:
        typer.Exit: for the three.
    """
    from sgl.bench import limits

    if any(line.run.interrupted for line in lines):
        raise typer.Exit(130)
    missed = ""
    for traffic in dict.fromkeys(line.traffic for line in lines):
        shares = [line.share.value for line in lines if line.traffic == traffic and line.share is not None]
        missed = missed or (limits.below(least, {limits.RUN: statistics.median(shares)}) if shares else "")
    if missed:
        console.complain(missed)
    if missed or any(line.figures["failed"] for line in lines):
        raise typer.Exit(1)


def rows_of(line: Line, names: Mapping[str, str]) -> dict[str, object]:
    """Figures by title; of several runs the medians with their intervals."""
    rows: dict[str, object] = {}
    for title, key in names.items():
        value = line.figures[key]
        interval = (line.summary or {}).get("intervals", {}).get(key)
        rows[title] = value
        if line.summary and interval and interval[0] < interval[1]:
            rows[title] = f"{_number(line.summary['medians'][key])} ({_number(interval[0])} - {_number(interval[1])})"
    return rows


def runs_row(line: Line) -> dict[str, object]:
    """How many runs the figures are medians of, and what their intervals are worth."""
    if line.summary is None:
        return {}
    return {"Runs (median, interval)": f"{line.summary['repeats']} ({line.summary['confidence']:.0%} confidence)"}


def limit_row(line: Line) -> dict[str, object]:
    """Share of the limit, and what binds."""
    if line.share is None:
        return {}
    median = line.summary["medians"]["share_of_limit"] if line.summary else line.share.value
    return {"Share of the limit": f"{median:.0%}, bound by {line.share.floor.bound}"}


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def block_of(title: str, rows: Mapping[str, object]) -> str:
    """Lines ``name: value`` under a title, in SGLang's form. A row whose value is None is a heading."""
    width = 50
    lines = [f" {title} ".center(width, "=")]
    for name, value in rows.items():
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append(name.center(width, "-") if value is None else f"{name + ':':<40} {shown}")
    return "\n".join([*lines, "=" * width])


def tell_traces(traces: Sequence[str]) -> None:
    """Where --profile has left its files."""
    for trace in traces:
        console.err().print(f"Trace: {trace}", soft_wrap=True)
