"""``sgl quantize int8``: 8-bit integers."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl.cli.options import command_of
from sgl.cli.quantize_run import MethodOptions, with_run


@with_run("int8")
def int8(
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm",
            help="rtn rounds to nearest and needs no text; gptq makes up for the errors; smoothquant also moves the "
            "spikes of activations to the weights first.",
            metavar="NAME",
        ),
    ] = "rtn",
    weight_only: Annotated[
        bool, typer.Option("--weight-only", help="W8A16: activations are not rounded while serving.")
    ] = False,
) -> MethodOptions:
    """Round weights to 8-bit integers with a scale per output; activations are rounded per token while serving."""
    return {"algorithm": algorithm, "weight_only": weight_only}


command = command_of(int8)
