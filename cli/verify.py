"""``sgl verify``: computes answers again from their receipts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import OPTIONS, Given
from sgl.engine.base.errors import SglError

if TYPE_CHECKING:
    from sgl.engine.api.receipt import Maker, Receipt
    from sgl.engine.base.config import EngineConfig


@with_config("model", "cache", "kernel")
def verify(
    values: sources.Values,
    receipt: Annotated[
        str,
        typer.Argument(
            help="A receipt, or an answer of /generate or OpenAI's APIs that carries one; - reads it from a pipe.",
            metavar="RECEIPT",
        ),
    ],
    model: Annotated[
        str, typer.Argument(help="Where the model is now; where the receipt says if not given.", metavar="MODEL")
    ] = "",
) -> None:
    """Compute the answers of receipts again; ends with 1 if one is another."""
    from sgl.engine.api.receipt import differences, read_receipts

    receipts = read_receipts(_read(receipt))
    config = sources.configure(with_model({**_options(receipts[0]), **values}, model))
    with console.err().status("loading"):
        here, answers = asyncio.run(_answers(config, receipts))
    told = [difference for one in receipts for difference in differences(one.maker, here)]
    for difference in dict.fromkeys(told):
        console.err().print(f"Not as it was: {difference}.", markup=False, highlight=False, soft_wrap=True)
    same = [_compare(*pair) for pair in zip(receipts, answers, strict=True)]  # says so of each
    if not all(same):
        raise typer.Exit(1)


command = command_of(verify)


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SglError(f"{file} cannot be read: {error.strerror}.", param="receipt") from None


def _options(receipt: Receipt) -> sources.Values:
    """The options of the engine that made it."""
    known = {option.name: option.key for option in OPTIONS}
    told = receipt.maker.options
    return {known[name]: Given(value, "receipt", name) for name, value in told.items() if name in known}


async def _answers(config: EngineConfig, receipts: list[Receipt]) -> tuple[Maker, list[tuple[int, ...]]]:
    """What computes here, and what it answers."""
    from sgl.engine.api import AsyncEngine
    from sgl.engine.api.receipt import again

    engine = await asyncio.to_thread(AsyncEngine.start, config, in_process=True)
    try:
        answers = []
        for receipt in receipts:
            tokens: list[int] = []
            async for item in engine.generate(again(receipt)):
                tokens += item.token_ids
            answers.append(tuple(tokens))
        return await engine.maker(), answers
    finally:
        await engine.shutdown()


def _compare(receipt: Receipt, output_ids: tuple[int, ...]) -> bool:
    """Says whether the answer is that of the receipt, and if not, from where on."""
    out, told = console.out(), receipt.output_ids
    if output_ids == told:
        out.print(f"[green]verified[/green]: the same {len(output_ids)} tokens")
        return True
    pairs = enumerate(zip(told, output_ids, strict=False))
    shorter = min(len(told), len(output_ids))
    position = next((place for place, (before, now) in pairs if before != now), shorter)
    out.print(f"[red]different[/red] from token {position} on: {_shown(told, position)} was told,")
    out.print(f"{_shown(output_ids, position)} comes now", highlight=False)
    return False


def _shown(token_ids: tuple[int, ...], position: int) -> str:
    return str(token_ids[position]) if position < len(token_ids) else "the end"
