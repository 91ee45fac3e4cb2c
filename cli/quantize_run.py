"""What all methods of ``sgl quantize`` share: their options, the bars while they run, and the tables at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import Options, option, with_options, with_parameters
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from sgl.quant.gate.criteria import Verdict
    from sgl.quant.gate.documents import VerdictFacts
    from sgl.quant.gate.job import Job, Outcome
    from sgl.quant.recipes.report import LayerError

GATE_FAILED = 3
MB = 1e6

SourceArgument = Annotated[
    str, typer.Argument(help="Directory or Hugging Face Hub id, in floating point.", metavar="MODEL")
]

MethodOptions = dict[str, Any]

_OUTPUT: Options = {
    "output": option(str, "", "--output", "-o", help="Directory of the new checkpoint.", metavar="DIR", panel="Output"),
    "restart": option(
        bool, False, "--restart", help="Throw away what an interrupted run left.", metavar=None, panel="Output"
    ),
    "shard_gb": option(
        float, 5.0, "--max-shard-size", help="Size of a file of weights, in GB.", metavar="GB", panel="Output"
    ),
    "revision": option(str, "", "--revision", help="Of a model on the Hub.", metavar="REVISION", panel="Output"),
}
_LAYERS: Options = {
    "ignore": option(
        list[str],
        [],
        "--ignore",
        help="Layers that stay as they are: a regular expression of their names' beginning; repeatable.",
        metavar="REGEX",
        panel="Layers",
    ),
    "auto": option(
        bool,
        False,
        "--auto",
        help="Search which layers must stay wider for the smallest checkpoint that passes --gate.",
        metavar=None,
        panel="Layers",
    ),
}
_DATA: Options = {
    "calibration": option(
        str,
        "",
        "--calibration",
        help="Text to calibrate with: a jsonl or txt file, or a Hub data set (NAME or NAME:SPLIT); a small built-in "
        "sample if not given.",
        metavar="FILE",
        panel="Text",
    ),
    "num_calibration": option(
        int, 256, "--calibration-samples", help="Sequences to calibrate with.", metavar="N", panel="Text"
    ),
    "gate": option(
        str,
        "",
        "--gate",
        help="What must hold, or nothing is written and the exit status is 3: "
        "'kl<=0.02, top1>=0.97, ppl<=1.02x, eval:demo-arith>=0.85'.",
        metavar="LIMITS",
        panel="Text",
    ),
    "gate_data": option(
        str,
        "",
        "--gate-data",
        help="Text to measure with; a quarter of the calibration text, which is then kept from it, if not given.",
        metavar="FILE",
        panel="Text",
    ),
    "num_gate": option(int, 64, "--gate-samples", help="Sequences to measure with.", metavar="N", panel="Text"),
    "max_tokens": option(int, 1024, "--max-tokens", help="Longest sequence.", metavar="N", panel="Text"),
    "seed": option(int, 0, "--seed", help="Of the choice of sequences.", metavar="N", panel="Text"),
}
OPTIONS: Options = {**_OUTPUT, **_LAYERS, **_DATA}
KV_OPTIONS: Options = {**_OUTPUT, **_DATA}
"""There are no layers to choose."""


def with_run(method: str, options: Options = OPTIONS) -> Callable[[Callable[..., MethodOptions]], Callable[..., None]]:
    """Makes a command of a function from a method's own flags to the arguments of `sgl.quant.recipes.methods`."""

    def decorate(function: Callable[..., MethodOptions]) -> Callable[..., None]:
        def run(given: Mapping[str, Any], model: str, **own: Any) -> None:
            _run(model, method, function(**own), given)

        own = inspect.signature(function, eval_str=True).parameters.values()
        model = inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, default="", annotation=SourceArgument)
        parameters = [model, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        return with_options("given", options)(with_parameters(run, function, parameters))

    return decorate


def _run(model: str, method: str, own: MethodOptions, given: Mapping[str, Any]) -> None:
    """Quantizes, shows what came out, and ends with 3 if the gate failed, with 130 after Ctrl-C."""
    job = _job(model, method, own, given)
    bars = Bars()
    try:
        with bars:
            outcome = _outcome(job, bars, auto=given.get("auto", False))
    except KeyboardInterrupt:
        places = (job.out.with_name(job.out.name + suffix) for suffix in (".partial", ".search"))
        kept = "".join(f" The same command goes on from {place}." for place in places if place.is_dir())
        console.err().print(f"Interrupted.{kept}", soft_wrap=True)
        raise typer.Exit(130) from None
    show_layers(outcome.layers)
    _show_sizes(outcome)
    if outcome.verdicts:
        from sgl.quant.gate.documents import facts_of

        show_verdicts(facts_of(outcome.verdicts))
    if not outcome.passed:
        console.complain("The gate failed: nothing was written.", _advice(outcome.verdicts))
        raise typer.Exit(GATE_FAILED)
    console.out().print(f"Written to {outcome.out}; `sgl serve {outcome.out}` serves it.", soft_wrap=True, markup=False)


def _outcome(job: Job, bars: Bars, auto: bool) -> Outcome:
    if auto:
        from sgl.quant.gate.search import search

        return search(job, bars)
    from sgl.quant.gate.job import run

    return run(job, bars)


def _job(model: str, method: str, own: MethodOptions, given: Mapping[str, Any]) -> Job:
    if not given["output"]:
        raise ConfigError("-o DIR is missing: name the directory of the new checkpoint.", param="--output")
    if not 0.001 <= given["shard_gb"] <= 1000:
        message = f"--max-shard-size must be between 0.001 and 1000, got {given['shard_gb']:g}."
        raise ConfigError(message, param="--max-shard-size")
    if given.get("auto") and not given["gate"]:
        raise ConfigError("--auto needs --gate: it searches for the smallest checkpoint that passes.", param="--auto")
    from sgl.quant.gate.criteria import parse
    from sgl.quant.gate.data import DataOptions
    from sgl.quant.gate.job import Job
    from sgl.quant.recipes import methods

    ignore = {"ignore": given["ignore"]} if "ignore" in given else {}
    recipe_for = methods.METHODS[method](**ignore, **own)
    criteria = parse(given["gate"]) if given["gate"] else ()
    if criteria:
        from sgl.quant.gate.measure import check

        check(criteria)
    data = DataOptions(
        calibration=given["calibration"],
        gate=given["gate_data"],
        num_calibration=given["num_calibration"],
        num_gate=given["num_gate"],
        max_tokens=given["max_tokens"],
        seed=given["seed"],
    )
    out = Path(given["output"].rstrip("/")).expanduser()
    return Job(
        model=model,
        out=out,
        recipe_for=recipe_for,
        data=data,
        criteria=criteria,
        restart=given["restart"],
        shard_bytes=int(given["shard_gb"] * 1e9),
        revision=given["revision"],
    )


class Bars:
    """A bar on standard error for every stage."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console.err())
        self._task: Any = None

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self._bars.start()  # not before: what is refused at once leaves no empty line
        note = f"{done / total:.0%} was done before" if done and total else ""
        self._task = self._bars.add_task(stage, total=total, completed=done, note=note)

    def step(self, note: str, count: int = 1) -> None:
        self._bars.update(self._task, advance=count, note=note)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bars.stop()


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table below its title, which is printed here: one of its own is wrapped to the width of the table."""
    from rich.table import Table
    from rich.text import Text

    console.out().print(Text(title, "italic"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in left:
        table.add_column(name, header_style="dim")
    for name in right:
        table.add_column(name, header_style="dim", justify="right")
    return table


def show_layers(layers: Sequence[LayerError]) -> None:
    """Errors and sizes; errors are a part of the weights' own size (root mean squares)."""
    if not layers:
        return
    table = _table("Error of the weights by layer", ("layer", "format"), ("error", "worst", "", "MB before", "after"))
    for layer in layers:
        table.add_row(
            layer.layer,
            layer.label,
            f"{layer.relative:.2%}",
            layer.worst,
            f"{layer.worst_relative:.2%}",
            f"{layer.before / MB:.2f}",
            f"{layer.after / MB:.2f}",
        )
    console.out().print(table, soft_wrap=False)


def _show_sizes(outcome: Outcome) -> None:
    grown, bound = (outcome.peak_bytes - outcome.base_bytes) / MB, outcome.bound_bytes / MB
    told = f", {grown:.0f} MB more than at the beginning (two layers and the embedding are {bound:.0f} MB)"
    console.out().print(
        f"Weights: {outcome.before / MB:.2f} MB -> {outcome.after / MB:.2f} MB "
        f"({outcome.after / outcome.before:.0%}).\n"
        f"Memory: {outcome.peak_bytes / MB:.0f} MB at most{told if bound else ''}.",
        soft_wrap=True,
    )


def show_verdicts(verdicts: Sequence[VerdictFacts]) -> None:
    """The gate: what was asked, what was measured, and whether the whole interval keeps the limit."""
    from rich.text import Text

    table = _table("Gate: the whole 95% interval must keep the limit", ("limit",), ("measured", "interval", ""))
    for verdict in verdicts:
        interval = "-" if verdict.low is None else f"{verdict.low:.4f} - {verdict.high:.4f}"
        told = Text("passed", "green") if verdict.passed else Text(f"failed: {verdict.reason}", "red")
        table.add_row(verdict.criterion, f"{verdict.value:.4f}", interval, told)
    console.out().print(table, soft_wrap=False)


def _advice(verdicts: Sequence[Verdict]) -> str:
    uncertain = any(verdict.reason.startswith(("not certain", "too few")) for verdict in verdicts)
    more = "More --gate-samples narrow the intervals. " if uncertain else ""
    return f"{more}--auto keeps the layers wider that need it."
