"""``sgl explain RID``: asks a server where the time of a request went, and draws it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.engine.api.explanation import Explanation, Listing
    from sgl.profiles.ledgers import Asked

_COLUMNS = 44  # of the table besides the bars
_STYLES = ("blue", "yellow", "green", "cyan", "magenta", "red")


def explain(
    rid: Annotated[
        str, typer.Argument(help="Name of the request: the id of its answer.", metavar="RID", show_default=False)
    ] = "",
    url: Annotated[str, typer.Option("--url", help="Of the server.", metavar="URL")] = "http://127.0.0.1:30000",
    slowest: Annotated[
        int, typer.Option("--slowest", help="List so many of the slowest requests instead.", min=0, metavar="N")
    ] = 0,
    send: Annotated[
        str,
        typer.Option(
            "--send",
            help="Send a request (its JSON body; - reads it from a pipe) and explain it: the network is a part.",
            metavar="FILE",
        ),
    ] = "",
    route: Annotated[str, typer.Option("--route", help="Where --send goes.", metavar="PATH")] = "/generate",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Write a page (.html) or a chart (.svg) instead.", metavar="FILE")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what the server says.")] = False,
    api_key: Annotated[str, typer.Option("--api-key", help="The server's key.", metavar="KEY")] = "",
) -> None:
    """Show where the time of a request went: its parts, what caused each delay, and what it would have taken alone."""
    from msgspec import to_builtins

    from sgl.profiles.ledgers import Ledgers, as_observed

    if [bool(rid), bool(slowest), bool(send)].count(True) != 1:
        raise ConfigError("Name a request, or ask for --slowest N, or --send FILE.")
    key = api_key or env.text("OPENAI_API_KEY")
    asked = _ask(url, key, route, send) if send else None
    rid = asked.rid if asked is not None else rid
    with Ledgers(url, key) as ledgers:
        if as_json and asked is None:
            typer.echo(ledgers.raw(rid, slowest))
        elif slowest:
            _print_list(ledgers.slowest(slowest))
        else:
            answers = ledgers.of(rid)
            if asked is not None:
                answers = [as_observed(found, asked) for found in answers]
            if as_json:
                typer.echo(json.dumps(to_builtins(answers)))
            elif output:
                _write(Path(output), answers, rid)
            else:
                for found in answers:
                    _print(found)


command = command_of(explain)


def _ask(url: str, api_key: str, route: str, file: str) -> Asked:
    """Sends what is in a file."""
    from sgl.profiles.ledgers import send

    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        body = json.loads(text)
    except OSError as error:
        raise ConfigError(f"--send {file} cannot be read: {error.strerror}.", param="--send") from None
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError(f"--send {file} must hold a JSON object, the body of a request.", param="--send")
    return send(url, api_key, route if route.startswith("/") else f"/{route}", body)


def _write(path: Path, answers: list[Explanation], rid: str) -> None:
    from sgl.profiles import waterfall

    content = waterfall.svg_file(answers[0]) if path.suffix == ".svg" else waterfall.page(answers, f"Request {rid}")
    console.write_output(str(path), content)


def _print(found: Explanation) -> None:
    from rich.table import Table
    from rich.text import Text

    from sgl.profiles import waterfall

    screen = console.out()
    width = min(max(screen.width - _COLUMNS, 10), 60)
    screen.print(Text(console.printable(f"{found.rid}: {waterfall.headline(found)}"), style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("", "ms", "of all", "alone"):
        table.add_column(title, header_style="dim", justify="right" if title else "left")
    table.add_column("")
    for part in waterfall.parts_of(found):
        ms, alone = found.parts[part], found.alone.parts.get(part, 0.0)
        bar = Text(_bar(found, part, width), style=_STYLES[waterfall.colour_of(part)])
        table.add_row(part, f"{ms:.1f}", f"{ms / found.total_ms:.1%}", f"{alone:.1f}", bar)
    table.add_row("all", f"{found.total_ms:.1f}", "100.0%", f"{found.alone.total_ms:.1f}", "", style="bold")
    screen.print(table, soft_wrap=False)
    screen.print(Text(waterfall.counterfactual(found), style="dim"), soft_wrap=True)
    if found.delays:
        screen.print("Delays", style="bold")
    for delay in found.delays:
        screen.print(Text(console.printable(f"{delay.ms:9.1f} ms  {delay.cause}")), soft_wrap=True)


def _bar(found: Explanation, part: str, width: int) -> str:
    """Where on the whole request's time the pieces of a part are."""
    cells = [" "] * width
    for piece in found.pieces:
        if piece.part == part and piece.ms:
            first = min(int(piece.begin_ms / found.total_ms * width), width - 1)
            last = min(int((piece.begin_ms + piece.ms) / found.total_ms * width), width - 1)
            cells[first : last + 1] = "█" * (last + 1 - first)
    return "".join(cells)


def _print_list(found: Listing) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("rid", "state"):
        table.add_column(title, header_style="dim", overflow="fold")
    for title in ("ms", "first token", "prompt", "answer", "alone ms"):
        table.add_column(title, header_style="dim", justify="right")
    table.add_column("most of it", header_style="dim")
    for one in found.requests:
        first = "-" if one.first_token_ms is None else f"{one.first_token_ms:.1f}"
        counts = f"{one.prompt_tokens}", f"{one.completion_tokens}", f"{one.alone_ms:.1f}"
        most = f"{one.largest} {one.largest_ms:.1f} ms"
        table.add_row(Text(console.printable(one.rid)), one.state, f"{one.total_ms:.1f}", first, *counts, most)
    console.out().print(table, soft_wrap=False)
