"""What will become of every tensor of a checkpoint; reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sgl.engine.base.errors import ConfigError, ModelError
from sgl.engine.base.machine import name_of
from sgl.quant.formats import compressed_tensors
from sgl.quant.recipes.source import FLOATS, Source, linear_modules
from sgl.quant.scheme import WritableScheme
from sgl.quant.writer import Planned

KV_SCALES = ("k_scale", "v_scale")
INPUT_SCALE = "input_scale"
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
_NUMBERED = re.compile(r"^(.*?\.)??(\d+)\.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for.

    Attributes:
        method: as on the command line.
        algorithm: how weights are rounded: ``rtn``, or one that is calibrated.
        scheme: of the linear layers; None leaves the weights alone.
        wider: modules with a scheme of their own, None for none.
        ignore: regular expressions of modules that stay as they are, matched from the beginning.
        kv: whether the scales of an fp8 KV cache are measured.
        options: what else decides the result, for the record.
    """

    method: str
    algorithm: str = "rtn"
    scheme: WritableScheme | None = None
    wider: Mapping[str, WritableScheme | None] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    kv: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_static(self) -> bool:
        """Whether the range of activations is measured beforehand."""
        entry = {} if self.scheme is None else self.scheme.entry
        return (entry.get("input_activations") or {}).get("dynamic") is False

    @property
    def is_calibrated(self) -> bool:
        """Whether text must go through the model to make it."""
        return self.algorithm != "rtn" or self.kv or self.is_static

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "method": self.method,
            "algorithm": self.algorithm,
            "scheme": None if self.scheme is None else self.scheme.label,
            "stored": None if self.scheme is None else {"format": self.scheme.format, **self.scheme.entry},
            "wider": {name: _label(scheme) for name, scheme in self.wider.items()},
            "ignore": list(self.ignore),
            "kv_cache": "fp8" if self.kv else None,
            **self.options,
        }


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that are made and completed together: modules whose scales hang together, or one that is copied."""

    name: str
    modules: tuple[str, ...] = ()
    scheme: WritableScheme | None = None


@dataclass(frozen=True)
class Plan:
    """The output, tensor by tensor.

    Attributes:
        schemes: of every linear module.
        units: in the order of the source's files.
        tensors: of the output.
    """

    source: Source
    recipe: Recipe
    schemes: Mapping[str, WritableScheme | None]
    units: tuple[Unit, ...]
    tensors: Mapping[str, Planned]

    @property
    def quantization_config(self) -> dict[str, Any]:
        """The entry in config.json."""
        main = self.recipe.scheme
        others = {name: scheme for name, scheme in self.schemes.items() if scheme is not None and scheme != main}
        groups = {**({} if main is None else {"Linear": main}), **others}
        ignored = [name for name, scheme in self.schemes.items() if scheme is None]
        outside = [name.removesuffix(".weight") for name in self.source.entries if _is_head(name)]
        kv = KV_SCHEME if self.recipe.kv else None
        return compressed_tensors.config(groups, sorted({"lm_head", *outside, *(ignored if groups else [])}), kv)

    def run(self, data_hash: str) -> str:
        """A name for everything that the output depends on."""
        return name_of([self.source.identity(), self.recipe.describe(), data_hash])


KV_SCHEME: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
}
"""One scale for all keys of a layer and one for its values, as other engines read them."""


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """
    Raises:
        ModelError: a layer cannot be stored so.
        ConfigError: a pattern is none or matches nothing.
    """
    modules = linear_modules(source)
    schemes = _schemes(modules, recipe)
    shapes = _Shapes(source)
    units: list[Unit] = []
    tensors: dict[str, Planned] = {}
    for name, entry in source.entries.items():
        module = name.removesuffix(".weight")
        scheme = schemes.get(module) if name.endswith(".weight") else None
        if scheme is None:
            units.append(Unit(name))
            tensors[name] = Planned(entry.dtype, entry.shape)
            continue
        parts = shapes.of(module, scheme)
        if recipe.is_calibrated:  # llmcompressor keeps scales in the precision of the weights
            parts = {suffix: _in_dtype(part, entry.dtype) for suffix, part in parts.items()}
        tensors |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
        if recipe.is_static:
            tensors[f"{module}.{INPUT_SCALE}"] = Planned(entry.dtype, (1,))
        family = siblings(module, schemes) if "weight_global_scale" in parts else (module,)
        if module == family[0]:
            units.append(Unit(module, family, scheme))
    if recipe.kv:
        for attention in sorted({module.rpartition(".")[0] for module in modules if module.endswith(".k_proj")}):
            dtype = source.entries[f"{attention}.k_proj.weight"].dtype
            tensors |= {f"{attention}.{suffix}": Planned(dtype, (1,)) for suffix in KV_SCALES}
    return Plan(source, recipe, schemes, tuple(units), tensors)


def check_any(plan: Plan) -> None:
    """
    Raises:
        ConfigError: nothing is left to quantize.
    """
    if not plan.recipe.kv and not any(plan.schemes.values()):
        raise ConfigError("--ignore leaves no layer to quantize.", param="--ignore")


def siblings(module: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that other engines stack with this one, so that they must share format and global scale."""
    parent, _, name = module.rpartition(".")
    for names in _FUSED:
        if name in names:
            found = tuple(f"{parent}.{other}" for other in names if f"{parent}.{other}" in known)
            return tuple(other for other in found if known[other] == known[module])
    return (module,)


def group_for(source: Source, ignore: Sequence[str]) -> int:
    """The largest group of 128, 64 and 32 inputs that divides the inputs of all layers; 128 if none does."""
    modules = [module for module in linear_modules(source) if not _matches(module, _compiled(ignore))]
    inner = [source.entries[f"{module}.weight"].shape[1] for module in modules]
    return next((group for group in (128, 64, 32) if not any(size % group for size in inner)), 128)


def layer_of(name: str) -> str:
    """The numbered layer that a tensor or module belongs to, such as ``model.layers.3``; empty outside layers."""
    found = _NUMBERED.match(name)
    return found.group(0).rstrip(".") if found else ""


def _is_head(name: str) -> bool:
    return bool(re.search(r"(?:^|\.)(?:lm_head|output|score|classifier)\.weight$", name)) and not layer_of(name)


def _in_dtype(part: Planned, dtype: torch.dtype) -> Planned:
    return Planned(dtype, part.shape) if part.dtype in FLOATS else part


def _label(scheme: WritableScheme | None) -> str | None:
    return None if scheme is None else scheme.label


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern.removeprefix("re:")) for pattern in patterns]
    except re.error as error:
        message = f"--ignore {error.pattern!r} is no regular expression: {error.msg}."
        raise ConfigError(message, param="--ignore") from None


def _matches(module: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.match(module) for pattern in patterns)


def _schemes(modules: Sequence[str], recipe: Recipe) -> dict[str, WritableScheme | None]:
    patterns = _compiled(recipe.ignore)
    for pattern in patterns:
        if not any(pattern.match(module) for module in (*modules, "lm_head")):
            raise ConfigError(
                f"--ignore {pattern.pattern} matches no layer; layers are called {modules[0]}, ...", param="--ignore"
            )
    return {
        module: None if _matches(module, patterns) else recipe.wider.get(module, recipe.scheme) for module in modules
    }


class _Shapes:
    """The tensors that a scheme makes of a weight, found once for every shape."""

    def __init__(self, source: Source) -> None:
        self._entries = source.entries
        self._known: dict[tuple[Any, ...], dict[str, Planned]] = {}

    def of(self, module: str, scheme: WritableScheme) -> dict[str, Planned]:
        entry = self._entries[f"{module}.weight"]
        key = (scheme, entry.shape, entry.dtype)
        if key not in self._known:
            try:
                encoded = scheme.encode(torch.ones(entry.shape, dtype=entry.dtype))
            except ValueError as error:
                raise ModelError(
                    f"{module}: {error}; use another --group, or keep such layers with --ignore.", param="--group"
                ) from None
            self._known[key] = {suffix: Planned.like(tensor) for suffix, tensor in encoded.items()}
        return self._known[key]


def widened(recipe: Recipe, wider: Mapping[str, WritableScheme | None]) -> Recipe:
    """The same recipe with more modules that have a scheme of their own."""
    return replace(recipe, wider={**recipe.wider, **wider})


def by_layer(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """The layers with what is quantized in each."""
    found: dict[str, list[str]] = {}
    for module, scheme in plan.schemes.items():
        if scheme is not None:
            found.setdefault(layer_of(module), []).append(module)
    yield from found.items()


def to_json(content: Any) -> bytes:
    """As files beside the weights are written."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
