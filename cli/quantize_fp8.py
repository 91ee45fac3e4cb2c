"""``sgl quantize fp8``: 8-bit floats."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl.cli.options import command_of
from sgl.cli.quantize_run import MethodOptions, with_run


@with_run("fp8")
def fp8(
    static: Annotated[
        bool, typer.Option("--static", help="One scale per tensor; those of activations are measured beforehand.")
    ] = False,
    block: Annotated[bool, typer.Option("--block", help="A scale for every 128 x 128 block of a weight.")] = False,
) -> MethodOptions:
    """Round weights to 8-bit floats with a scale per output; activations are rounded per token while serving.

    Needs no text unless --static asks for measured scales.
    """
    return {"static": static, "block": block}


command = command_of(fp8)
