"""``sgl schema check``: which keywords of a JSON schema structured output enforces, and how long an output can get."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base.errors import SglError

if TYPE_CHECKING:
    from sgl.engine.api.schema import SchemaReport

_COLOURS = {"enforced": "green", "approximated": "yellow", "unsupported": "red"}


def check(
    file: Annotated[str, typer.Argument(help="A JSON schema; - reads standard input.", metavar="FILE")],
    backend: Annotated[
        str, typer.Option(help="auto, native, llguidance, xgrammar or outlines.", metavar="NAME", show_default="auto")
    ] = "auto",
) -> None:
    """Say which keywords of a JSON schema are enforced; ends with 1 if some would not be."""
    from sgl.engine.api.schema import check_schema

    choice: Any = backend
    report = check_schema(_read(file), choice)
    _show(report)
    if not report.is_supported:
        raise typer.Exit(1)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise SglError(f"{file} cannot be read: {error.strerror}.", param="file") from None
    except UnicodeDecodeError:
        raise SglError(f"{file} is not UTF-8 text.", param="file") from None


def _show(report: SchemaReport) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("pointer", "status", "note"):
        table.add_column(title, header_style="dim", overflow="fold")
    for found in report.findings:
        row = (Text(console.printable(found.pointer)), Text(found.status, style=_COLOURS[found.status]))
        table.add_row(*row, Text(console.printable(found.note), style="dim"))
    out = console.out()
    out.print(table)
    longest = "unbounded" if report.max_tokens is None else f"{report.max_tokens} tokens"
    out.print(f"\nlongest output: {longest}", markup=False)
    if report.error:
        out.print(Text(console.printable(report.error), style="red"))
    out.print(f"{'supported' if report.is_supported else 'not supported'} by {report.backend}", markup=False)


command = command_of(check)
