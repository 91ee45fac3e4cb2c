"""``sgl quantize nvfp4``: 4-bit floats as NVIDIA lays them out."""

from __future__ import annotations

from sgl.cli.options import command_of
from sgl.cli.quantize_run import MethodOptions, with_run


@with_run("nvfp4")
def nvfp4() -> MethodOptions:
    """Round weights to 4-bit floats with a scale in fp8 for 16 inputs; activations stay as they are. Needs no text."""
    return {}


command = command_of(nvfp4)
