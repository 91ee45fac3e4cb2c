"""``sgl quantize mxfp4``: 4-bit floats of the OCP specification."""

from __future__ import annotations

from sgl.cli.options import command_of
from sgl.cli.quantize_run import MethodOptions, with_run


@with_run("mxfp4")
def mxfp4() -> MethodOptions:
    """Round weights to 4-bit floats with a power of two for 32 inputs; activations stay as they are. Needs no text."""
    return {}


command = command_of(mxfp4)
