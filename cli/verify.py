"""``sgl verify``: computes an answer again from its receipt."""

from __future__ import annotations

import asyncio
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
        str, typer.Argument(help="A receipt, or an answer of /generate that carries one.", metavar="RECEIPT")
    ],
    model: Annotated[
        str, typer.Argument(help="Where the model is now; where the receipt says if not given.", metavar="MODEL")
    ] = "",
) -> None:
    """Compute the answer of a receipt again; ends with 1 if it is another one."""
    from sgl.engine.api.receipt import differences, read_receipt

    told = read_receipt(_read(receipt))
    config = sources.configure(with_model({**_options(told), **values}, model))
    with console.err().status("loading"):
        here, output_ids = asyncio.run(_answer(config, told))
    for difference in differences(told.maker, here):
        console.err().print(f"Not as it was: {difference}.", markup=False, highlight=False, soft_wrap=True)
    same = output_ids == told.output_ids
    out = console.out()
    if same:
        out.print(f"[green]verified[/green]: the same {len(output_ids)} tokens")
        return
    pairs = enumerate(zip(told.output_ids, output_ids, strict=False))
    shorter = min(len(told.output_ids), len(output_ids))
    position = next((place for place, (before, now) in pairs if before != now), shorter)
    out.print(f"[red]different[/red] from token {position} on: {_shown(told.output_ids, position)} was told,")
    out.print(f"{_shown(output_ids, position)} comes now", highlight=False)
    raise typer.Exit(1)


command = command_of(verify)


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SglError(f"{file} cannot be read: {error.strerror}.", param="receipt") from None


def _options(receipt: Receipt) -> sources.Values:
    """The options of the engine that made it."""
    known = {option.name: option.key for option in OPTIONS}
    told = receipt.maker.options
    return {known[name]: Given(value, "receipt", name) for name, value in told.items() if name in known}


async def _answer(config: EngineConfig, receipt: Receipt) -> tuple[Maker, tuple[int, ...]]:
    """What computes here, and what it answers."""
    from sgl.engine.api import AsyncEngine
    from sgl.engine.api.receipt import again

    engine = await asyncio.to_thread(AsyncEngine.start, config, in_process=True)
    try:
        tokens: list[int] = []
        async for item in engine.generate(again(receipt)):
            tokens += item.token_ids
        return await engine.maker(), tuple(tokens)
    finally:
        await engine.shutdown()


def _shown(token_ids: tuple[int, ...], position: int) -> str:
    return str(token_ids[position]) if position < len(token_ids) else "the end"
