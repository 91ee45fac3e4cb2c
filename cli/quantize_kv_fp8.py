"""``sgl quantize kv-fp8``: scales for a KV cache in fp8."""

from __future__ import annotations

from sgl.cli.options import command_of
from sgl.cli.quantize_run import KV_OPTIONS, MethodOptions, with_run


@with_run("kv-fp8", KV_OPTIONS)
def kv_fp8() -> MethodOptions:
    """Measure a scale for the keys and one for the values of every layer, for a KV cache in fp8; weights stay."""
    return {}


command = command_of(kv_fp8)
