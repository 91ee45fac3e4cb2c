"""Which stored tensors make up which quantized weight; reads headers only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.quant.scheme import Part, Scheme
from sgl.quant.stored import Header, Layout

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of safetensors."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, by its header."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None = None  # of its first byte, in a GGUF file
    undo: Callable[[Tensor], Tensor] | None = None  # what was done to its rows when it was written


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The tensors of a quantized weight by suffix."""

    module: str  # its name in the checkpoint
    scheme: Scheme
    parts: Mapping[str, Stored]


@dataclass(slots=True)
class Found:
    """What of a checkpoint is quantized.

    Attributes:
        weights: by the name of the weight that they stand for.
        used: the tensors that these consist of.
        empty: biases that no layer wants, as GPTQ stores them: they must be zero.
        problems: what does not fit, by kind.
    """

    weights: dict[str, StoredParts] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    empty: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def find(layout: Layout, wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> Found:
    """The quantized ones among the weights that a model wants, by the headers of a checkpoint.

    Raises:
        ModelError: a weight cannot be stored as the checkpoint says.
    """
    found = Found()
    modules = {
        name.removesuffix(".weight") for name, shape in wanted.items() if name.endswith(".weight") and len(shape) == 2
    }
    for module, tensors in _by_module(modules, stored).items():
        suffix, some = next(iter(tensors.items()))
        original = some.key.removesuffix(f".{suffix}")
        headers = {suffix: Header(part.shape, DTYPES.get(part.dtype, torch.bool)) for suffix, part in tensors.items()}
        scheme = layout.scheme_of(original, headers)
        if scheme is None:
            continue
        rows, inner = wanted[f"{module}.weight"]
        try:
            parts = scheme.parts(rows, inner)
        except ValueError as error:
            raise ModelError(
                f"{original} ({scheme.label}): {error}; the checkpoint was made for another model."
            ) from None
        _check(found, module, parts, tensors)
        names = [part.suffix for part in parts]
        found.weights[f"{module}.weight"] = StoredParts(
            original, scheme, {suffix: part for suffix, part in tensors.items() if suffix in names}
        )
        found.used.update(f"{module}.{suffix}" for suffix in tensors if suffix in names)
        if "bias" in tensors and f"{module}.bias" not in wanted:
            found.empty.append(f"{module}.bias")
    return found


def _by_module(modules: set[str], stored: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    by_module: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name, tensor in stored.items():
        end = name.rfind(".")
        while end > 0 and name[:end] not in modules:
            end = name.rfind(".", 0, end)
        if end > 0:
            by_module[name[:end]][name[end + 1 :]] = tensor
    return by_module


def _check(found: Found, module: str, parts: tuple[Part, ...], tensors: Mapping[str, Stored]) -> None:
    for part in parts:
        name, tensor = f"{module}.{part.suffix}", tensors.get(part.suffix)
        if tensor is None:
            if not part.optional:
                found.problems["missing"].append(name)
        elif DTYPES.get(tensor.dtype) not in part.dtypes:
            found.problems["of a dtype that its format does not have"].append(f"{name} ({tensor.dtype})")
        elif part.shapes and tensor.shape not in part.shapes:
            wanted = " or ".join(str(list(shape)) for shape in part.shapes)
            text = f"{name} ({list(tensor.shape)} instead of {wanted})"
            found.problems["of another shape than the format asks for"].append(text)
