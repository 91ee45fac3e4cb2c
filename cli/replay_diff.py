"""``sgl replay diff A B``: the same requests answered twice, by two builds perhaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of

if TYPE_CHECKING:
    from sgl.bench.replay.compare import Comparison

_GREEDY_DIFFERS = 1


def diff(
    a: Annotated[str, typer.Argument(help="Folder of a recording, or file of a recording or replay.", metavar="A")],
    b: Annotated[str, typer.Argument(help="The same requests, answered again.", metavar="B")],
    most: Annotated[int, typer.Option("--show", help="Differences to show.", metavar="N", min=0)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all differences.")] = False,
) -> None:
    """Compare answers, and latencies pair by pair. Ends with 1 if an answer differs that had no choice (greedy)."""
    from sgl.bench.replay.compare import compare
    from sgl.bench.replay.files import read

    found = compare(read(Path(a)), read(Path(b)))
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        show(found, most)
    if found.num_greedy_different:
        raise typer.Exit(_GREEDY_DIFFERS)


command = command_of(diff)


def show(found: Comparison, most: int) -> None:
    """Prints a comparison."""
    from rich.text import Text

    screen = console.out()
    told = f"{found.num_identical} of {found.num_compared} answers are the same"
    told += f"; of {found.num_greedy} greedy ones {found.num_greedy - found.num_greedy_different}."
    screen.print(Text(told, "bold"), soft_wrap=True)
    if found.num_hidden:
        told = f"Not compared: {found.num_hidden}, of which redaction has changed what was recorded."
        screen.print(told, soft_wrap=True)
    for side, alone in (("A", found.only_a), ("B", found.only_b)):
        if alone:
            screen.print(f"{alone} requests are only in {side}.", soft_wrap=True)
    for one in found.differences[:most]:
        where = f", choice {one.choice}" if one.choice else ""
        kind = "greedy" if one.is_greedy else "sampled"
        head = f"  {one.rid} ({kind}{where}): {one.what} from {one.position} on"
        screen.print(Text(console.printable(head), "yellow"), soft_wrap=True)
        for side, text in (("A", one.a), ("B", one.b)):
            screen.print(Text(f"    {side}: {console.printable(text)}"), soft_wrap=True)
    if len(found.differences) > most:
        screen.print(Text(f"  and {len(found.differences) - most} more (--show, or --json for all)", "dim"))
    for name, ratio in found.ratios.items():
        sure = f"{ratio.confidence:.0%}: {ratio.interval}" if ratio.confidence else "too few for an interval"
        screen.print(Text(f"Latency {name}, B / A: {ratio.value:.3f} ({sure})"), soft_wrap=True)
