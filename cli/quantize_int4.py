"""``sgl quantize int4``: 4-bit integers in groups."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl.cli.options import command_of
from sgl.cli.quantize_run import MethodOptions, with_run


@with_run("int4")
def int4(
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm",
            help="gptq makes up for errors in weights that are not rounded yet; awq scales channels that matter; rtn "
            "rounds to nearest and needs no text.",
            metavar="NAME",
        ),
    ] = "gptq",
    group: Annotated[
        int | None,
        typer.Option(
            "--group",
            help="Inputs that share a scale: 32, 64 or 128; the largest that fits the model if not given.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Groups also have a zero point.")] = False,
) -> MethodOptions:
    """Round weights to 4-bit integers with a scale for every group of inputs (W4A16)."""
    return {"algorithm": algorithm, "group": group, "asymmetric": asymmetric}


command = command_of(int4)
