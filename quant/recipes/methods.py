"""The methods of `sgl quantize`: from their options to a recipe; reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sgl.engine.base.errors import ConfigError
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.int8 import Int8
from sgl.quant.formats.mxfp4 import MXFP4
from sgl.quant.formats.nvfp4 import NVFP4
from sgl.quant.formats.packed import Packed
from sgl.quant.recipes.plan import Recipe, group_for
from sgl.quant.recipes.source import Source
from sgl.quant.scheme import WritableScheme

RecipeFor = Callable[[Source], Recipe]
"""A recipe may depend on the shapes of the model."""

GROUPS = (32, 64, 128)
INT8_ALGORITHMS = ("rtn", "gptq", "smoothquant")
INT4_ALGORITHMS = ("rtn", "gptq", "awq")

WIDER: Mapping[str, WritableScheme | None] = {
    "int4": Packed(8, None),
    "nvfp4": Float8("channel", "token"),
    "mxfp4": Float8("channel", "token"),
    "int8": None,
    "fp8": None,
}
"""What --auto gives to layers that do not bear the method."""


def fp8(ignore: Sequence[str] = (), *, static: bool = False, block: bool = False) -> RecipeFor:
    """Scales per output and per token; with ``static`` one per tensor, measured; with ``block`` per 128 x 128."""
    if static and block:
        raise ConfigError(
            "--static and --block exclude each other: blocks round activations as they come.", param="--static"
        )
    scheme = Float8("tensor", "tensor") if static else Float8("block", "block") if block else Float8("channel", "token")
    return lambda source: Recipe("fp8", scheme=scheme, ignore=tuple(ignore))


def int8(ignore: Sequence[str] = (), *, algorithm: str = "rtn", weight_only: bool = False) -> RecipeFor:
    """A scale per output; activations are rounded per token, or not at all with ``weight_only``."""
    _check(algorithm, INT8_ALGORITHMS)
    if weight_only and algorithm == "smoothquant":
        message = "--algorithm smoothquant makes activations easier to round; --weight-only rounds none."
        raise ConfigError(message, param="--algorithm")
    scheme: WritableScheme = Packed(8, None) if weight_only else Int8()
    return lambda source: Recipe("int8", algorithm, scheme, ignore=tuple(ignore))


def int4(
    ignore: Sequence[str] = (), *, algorithm: str = "gptq", group: int | None = None, asymmetric: bool = False
) -> RecipeFor:
    """A scale for every group of inputs; without ``group`` the largest that fits the model."""
    _check(algorithm, INT4_ALGORITHMS)
    if group is not None and group not in GROUPS:
        message = f"--group must be {', '.join(map(str, GROUPS[:-1]))} or {GROUPS[-1]}, got {group}."
        raise ConfigError(message, param="--group")

    def recipe(source: Source) -> Recipe:
        scheme = Packed(4, group or group_for(source, ignore), symmetric=not asymmetric)
        return Recipe("int4", algorithm, scheme, ignore=tuple(ignore))

    return recipe


def nvfp4(ignore: Sequence[str] = ()) -> RecipeFor:
    """4-bit floats, a scale in fp8 for 16 inputs; activations stay as they are."""
    return lambda source: Recipe("nvfp4", scheme=NVFP4(), ignore=tuple(ignore))


def mxfp4(ignore: Sequence[str] = ()) -> RecipeFor:
    """4-bit floats, a power of two for 32 inputs; activations stay as they are."""
    return lambda source: Recipe("mxfp4", scheme=MXFP4(), ignore=tuple(ignore))


def kv_fp8() -> RecipeFor:
    """Scales for keys and values in fp8; weights stay as they are."""
    return lambda source: Recipe("kv-fp8", kv=True)


def _check(algorithm: str, known: Sequence[str]) -> None:
    if algorithm not in known:
        message = f"--algorithm {algorithm} is unknown; use {', '.join(known)}."
        raise ConfigError(message, param="--algorithm")


METHODS: Mapping[str, Callable[..., RecipeFor]] = {
    "fp8": fp8,
    "int8": int8,
    "int4": int4,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "kv-fp8": kv_fp8,
}
"""By their names on the command line."""
