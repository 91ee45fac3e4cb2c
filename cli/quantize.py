"""``sgl quantize``: the methods by name, and what is known of a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from sgl.cli.main import Subcommand, group_of

COMMANDS: Mapping[str, Subcommand] = {
    "fp8": Subcommand("sgl.cli.quantize_fp8", "8-bit floats: weights and activations."),
    "int8": Subcommand("sgl.cli.quantize_int8", "8-bit integers: weights, and activations per token."),
    "int4": Subcommand("sgl.cli.quantize_int4", "4-bit integers in groups: weights."),
    "nvfp4": Subcommand("sgl.cli.quantize_nvfp4", "4-bit floats with fp8 scales for 16 inputs: weights."),
    "mxfp4": Subcommand("sgl.cli.quantize_mxfp4", "4-bit floats with power-of-two scales for 32 inputs: weights."),
    "kv-fp8": Subcommand("sgl.cli.quantize_kv_fp8", "Measured scales for a KV cache in fp8; weights stay."),
    "show": Subcommand("sgl.cli.quantize_show", "How a checkpoint was made and what it was measured to be worth."),
}

command = group_of("quantize", "Make a smaller checkpoint and measure whether it is still good.", COMMANDS)
