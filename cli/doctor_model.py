"""``sgl doctor model``: says what is wrong with a checkpoint, and where this engine computes something else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.doctor.fault import Report

_STYLES = {"wrong": "bold red", "weak": "yellow"}

DirectoryArgument = Annotated[str, typer.Argument(help="Directory, GGUF file or Hugging Face Hub id.", metavar="MODEL")]
Compute = Literal["float32", "bfloat16"]
Served = Literal["auto", "bfloat16", "float16", "float32"]


def model(
    directory: DirectoryArgument,
    reference: Annotated[str, typer.Option(help="A checkpoint that is known to be good.", metavar="MODEL")] = "",
    overrides: Annotated[
        str,
        typer.Option("--json-model-override-args", help="What the engine reads in place of config.json's fields."),
    ] = "{}",
    dtype: Annotated[Served, typer.Option(help="What it is to be served in.")] = "auto",
    record_canary: Annotated[
        bool,
        typer.Option(
            "--record-canary",
            help="If nothing is wrong, record the scores of a short prompt in the directory; engines check them there.",
        ),
    ] = False,
    compute: Annotated[Compute, typer.Option(help="What both sides compute their layers in.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find what is wrong with a checkpoint, and the first layer that is not what transformers computes.

    Looks at tokenizer, template, BOS, special tokens, config and weights; runs every layer on the CPU beside
    transformers', or with --reference beside those of a checkpoint that is known to be good. Ends with 1 if something
    is wrong.
    """
    from sgl.bench.doctor.model import Subject, examine
    from sgl.bench.doctor.model import overrides as parsed

    if record_canary and not Path(directory).expanduser().is_dir():
        raise ConfigError(f"--record-canary needs a directory to write to, and {directory} is none.", param="MODEL")
    subject = Subject(directory, reference, parsed(overrides), compute, dtype)
    with console.err().status("looking") as status:
        report = examine(subject, status.update)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _print(report)
    if any(fault.severity == "wrong" for fault in report.faults):
        raise typer.Exit(1)
    if record_canary:
        from sgl.bench.doctor.canary import record

        with console.err().status("recording"):
            file = record(Path(directory).expanduser(), subject.overrides, dtype)
        console.err().print(f"Recorded in {file}.", markup=False, soft_wrap=True)


command = command_of(model)


def _print(report: Report) -> None:
    from rich.text import Text

    screen = console.out()
    for fault in report.faults:
        head = Text.assemble((f"{fault.severity:<6} ", _STYLES[fault.severity]), (f"{fault.check:<9} ", "dim"))
        screen.print(head + Text(console.printable(fault.place), "bold"), soft_wrap=True)
        for label, value in (("expected", fault.expected), ("found", fault.found), ("fix", fault.fix)):
            screen.print(Text.assemble((f"       {label:<9} ", "dim"), console.printable(value)), soft_wrap=True)
    for mark, style, lines in (("looked", "green", report.done), ("not", "yellow", report.skipped)):
        for told in lines:
            screen.print(Text.assemble((f"{mark:<6} ", style), console.printable(told)), soft_wrap=True)
    if not report.faults:
        screen.print("Nothing is wrong with it." if not report.skipped else "Nothing is wrong with what was looked at.")
