"""``sgl kernels``: which implementation of every op runs on this machine, and why not the others."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of, with_config
from sgl.engine.base import sources
from sgl.engine.base.config import BY_NAME


@with_config("kernel", described=True)
def kernels(
    values: sources.Values,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", metavar="DEVICE", show_default="auto")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Precision of the activations.", metavar="DTYPE", show_default="bfloat16")
    ] = "bfloat16",
) -> None:
    """Show which implementation of every kernel runs on this machine, and why not the others."""
    precision = BY_NAME["dtype"].parse(dtype, "--dtype")
    given = values.get("kernel.overrides")
    overrides = BY_NAME["kernels"].parse(given.value, given.where) if given is not None else ()
    assert isinstance(overrides, tuple)

    from rich.table import Table
    from rich.text import Text

    from sgl.engine.base.device import open_device
    from sgl.engine.base.dtypes import torch_dtype
    from sgl.kernels.registry import describe

    where = open_device(device)
    types = {"auto": "bfloat16", "half": "float16", "float": "float32"}
    name = types.get(str(precision), str(precision))
    rows = describe(where.kind, where.isa, torch_dtype(name), overrides)
    table = Table(title=f"{where.kind} {where.isa}, {name}", title_justify="left", box=None, pad_edge=False)
    for title in ("op", "runs", "others"):
        table.add_column(title, header_style="dim", overflow="fold")
    for row in rows:
        others = "; ".join(f"{other}: {reason}" for other, reason in row.alternatives)
        table.add_row(Text(row.op), Text(row.chosen, style="green"), Text(others, style="dim"))
    console.out().print(table, soft_wrap=False)


command = command_of(kernels)
