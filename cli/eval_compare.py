"""``sgl eval compare``: two runs of one task, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of

if TYPE_CHECKING:
    from sgl.bench.evals.compare import Answers, Comparison, Flip

_SHOWN_CHARS = 72


def compare(
    first: Annotated[
        str,
        typer.Argument(help="Folder of a run or its items.jsonl; the folder of lm-eval's samples.", metavar="A"),
    ],
    second: Annotated[str, typer.Argument(help="Another run of the same task.", metavar="B")],
    flips: Annotated[int, typer.Option("--flips", help="Items to show of each kind.", metavar="N")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.", metavar="N")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all items that flipped.")] = False,
) -> None:
    """Compare two runs: the difference with its 95% interval, and the items that only one of them got right."""
    from sgl.bench.evals import compare as comparing

    a, b = (comparing.Answers.read_all(Path(path)) for path in (first, second))
    found = comparing.compare_all(a, b, seed)
    if as_json:
        told = {task: comparing.to_dict(comparison) for task, comparison in found.items()}
        typer.echo(json.dumps(told if len(a) + len(b) > 2 else next(iter(told.values()))))
        return
    for number, (task, comparison) in enumerate(found.items()):
        if len(a) + len(b) > 2:
            console.out().print(f"{chr(10) if number else ''}{console.printable(task)}", style="bold", markup=False)
        _show(comparison, a[0], b[0], flips)
    for side, answers in zip("AB", (a, b), strict=True):
        alone = [each.task for each in answers if each.task not in found]
        if alone and len(found) < len(answers):
            console.err().print(f"Only in {side}: {', '.join(alone)}.", markup=False, soft_wrap=True)


command = command_of(compare)


def _show(found: Comparison, a: Answers, b: Answers, flips: int) -> None:
    from rich.text import Text

    screen = console.out()
    form = "{:.1%}" if found.figure == "accuracy" else "{:.4f}"
    for side, answers, value, cut in zip("AB", (a, b), (found.a, found.b), found.num_cut, strict=True):
        told = f"{side}: {form.format(value)}  {console.printable(answers.model)}  {answers.path}"
        screen.print(Text(told + (f"  ({cut} answers cut)" if cut else "")), soft_wrap=True)
    low, high = found.difference.low, found.difference.high
    interval = "too few items for an interval" if low is None else f"95%: {_signed(low, form)} to {_signed(high, form)}"
    told = (
        f"\nB - A: {_signed(found.difference.value, form)} of {found.figure.replace('_', ' ')} over {found.num_items} "
    )
    screen.print(Text(f"{told}items ({interval}): {found.verdict}.", "bold"), soft_wrap=True)
    if found.p_value is None:
        return
    told = f"{len(found.gained)} items only B got right, {len(found.lost)} only A"
    screen.print(Text(f"{told}; so uneven a split by chance: p = {found.p_value:.3g}."), soft_wrap=True)
    _show_flips("Only B got right", found.gained, flips)
    _show_flips("Only A got right", found.lost, flips)


def _show_flips(title: str, items: tuple[Flip, ...], most: int) -> None:
    from rich.text import Text

    screen = console.out()
    if not items or most < 1:
        return
    screen.print(Text(f"\n{title}:", "bold"))
    for flip in items[:most]:
        screen.print(Text(f"  {console.printable(flip.a.id)}", "cyan"), soft_wrap=True)
        for name, value in (("expected", flip.a.expected), ("A", flip.a.got), ("B", flip.b.got)):
            text = console.printable(json.dumps(value, ensure_ascii=False))
            shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
            screen.print(Text(f"    {name + ':':<10}{shown}"), soft_wrap=True)
    if len(items) > most:
        screen.print(Text(f"  and {len(items) - most} more (--flips, or --json for all)", "dim"))


def _signed(value: float | None, form: str) -> str:
    assert value is not None, "an interval has both ends"
    return ("+" if value >= 0 else "") + form.format(value)
