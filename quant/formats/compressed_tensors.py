"""The ``quantization_config`` of compressed-tensors: groups of modules and what each is stored in, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl.engine.base.errors import ModelError
from sgl.kernels.ops.linear import Activations
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.int8 import Int8
from sgl.quant.formats.mxfp4 import MXFP4
from sgl.quant.formats.nvfp4 import NVFP4
from sgl.quant.formats.packed import Packed
from sgl.quant.scheme import FLOATS, Scheme, WritableScheme
from sgl.quant.stored import Fields, Layout, Tensors

METHOD = "compressed-tensors"
_VERSION = "0.19.0"
_PLAIN = ("float-quantized", "int-quantized", "naive-quantized")


def config(
    groups: Mapping[str, WritableScheme], ignore: Sequence[str] = (), kv_cache_scheme: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        groups: schemes by target: ``Linear``, the name of a module, or ``re:`` and a regular expression of names.
        ignore: modules that are kept in floating point, named in the same ways.
        kv_cache_scheme: how keys and values are meant to be kept.
    """
    targets: dict[WritableScheme, list[str]] = {}
    for target, scheme in groups.items():
        targets.setdefault(scheme, []).append(target)
    formats = {scheme.format for scheme in targets}
    listed = {
        f"group_{index}": {"targets": names, "format": scheme.format, **scheme.entry}
        for index, (scheme, names) in enumerate(targets.items())
    }
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense",
        "quantization_status": "compressed",
        "config_groups": listed,
        "ignore": list(ignore),
        "kv_cache_scheme": None if kv_cache_scheme is None else dict(kv_cache_scheme),
        "global_compression_ratio": None,
        "version": _VERSION,
    }


def read(fields: Fields) -> Layout:
    """The layout that `config` and llmcompressor write."""
    if fields.object("sparsity_config").get("format", "dense") != "dense":
        fields.refuse("sparsity_config", "asks for sparse weights, which are not supported; save them dense")
    if fields.get("transform_config"):
        fields.refuse("transform_config", "asks for transforms of activations, which are not supported")
    overall = fields.get("format", "dense")
    targets: list[_Target] = []
    for name, entry in fields.object("config_groups").items():
        group = Fields(entry if isinstance(entry, dict) else {}, f"{fields.path}.config_groups.{name}")
        scheme = _scheme(group, group.get("format", overall))
        targets += [_Target.of(text, group, "targets", scheme) for text in group.names("targets")]
    ignored = [_Target.of(text, fields, "ignore", None) for text in fields.names("ignore")]
    targets.sort(key=lambda target: target.rank)

    def scheme_of(module: str, tensors: Tensors) -> Scheme | None:
        weight = tensors.get("weight")
        is_float = weight is not None and weight.dtype in FLOATS and "weight_scale" not in tensors
        if is_float or any(target.matches(module) for target in ignored):
            return None
        return next((target.scheme for target in targets if target.matches(module)), None)

    return Layout(METHOD, scheme_of)


@dataclass(frozen=True, slots=True)
class _Target:
    """Modules by name (the first to count), by a regular expression, or all of a class; here all are ``Linear``."""

    name: str
    pattern: re.Pattern[str] | None
    scheme: Scheme | None

    @classmethod
    def of(cls, text: str, fields: Fields, field: str, scheme: Scheme | None) -> _Target:
        if not text.startswith("re:"):
            return cls(text, None, scheme)
        try:
            return cls("", re.compile(text.removeprefix("re:")), scheme)
        except re.error as error:
            fields.refuse(field, f"has the regular expression {text!r}, which is not one ({error})")

    @property
    def rank(self) -> int:
        return 1 if self.pattern else 2 if self.name == "Linear" else 0

    def matches(self, module: str) -> bool:
        if self.pattern is not None:
            return self.pattern.match(module) is not None
        return self.name in (module, "Linear")


def _scheme(group: Fields, format: Any) -> Scheme | None:
    """How the weights of a group are stored; None if they are not quantized."""
    weights, inputs = group.object("weights"), group.object("input_activations")
    if format == "dense" or not weights.items():
        return None
    kind, bits = weights.get("type", "int"), weights.integer("num_bits", 8)
    strategy = weights.get("strategy", "group" if weights.get("group_size") else "tensor")
    size = weights.get("group_size")
    if format in _PLAIN and (kind, bits) == ("float", 8) and strategy in ("tensor", "channel", "block"):
        block = weights.get("block_structure", [128, 128])
        return Float8(strategy, _float_activations(inputs), (int(block[0]), int(block[1])))
    if format in _PLAIN and kind == "int" and bits in (4, 8) and strategy in ("tensor", "channel", "group"):
        scale = weights.integer("group_size") if strategy == "group" else strategy
        return Int8(
            scale, inputs.get("strategy", "token") if inputs.items() else "none", weights.flag("symmetric", True)
        )
    if format == "pack-quantized" and kind == "int" and bits in (4, 8) and strategy in ("channel", "group"):
        groups = weights.integer("group_size") if strategy == "group" else None
        return Packed(bits, groups, weights.flag("symmetric", True))  # type: ignore[arg-type] # 4 or 8
    if format == "nvfp4-pack-quantized" and (kind, bits, size) == ("float", 4, 16):
        return NVFP4("group" if inputs.items() else "none")
    if format == "mxfp4-pack-quantized" and (kind, bits, size) == ("float", 4, 32):
        return MXFP4()
    raise ModelError(
        f"config.json: {group.path} stores {bits}-bit {kind} weights per {strategy} as {format!r}, which is not "
        "supported; supported are fp8, int8, int4, nvfp4 and mxfp4 as llmcompressor saves them."
    )


def _float_activations(inputs: Fields) -> Activations:
    if not inputs.items():
        return "none"
    if inputs.get("strategy") == "group":
        return "block"
    return "token" if inputs.get("dynamic") else "tensor"
