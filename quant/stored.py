"""How a checkpoint says that it is quantized: which scheme each of its modules has; reads no tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from sgl.engine.base.errors import ModelError
from sgl.quant.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Tensors = Mapping[str, Header]
"""The tensors of a module by suffix."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint's ``quantization_config`` says.

    Attributes:
        method: its ``quant_method``.
        scheme_of: how a module is stored, from its name in the checkpoint and its tensors; None: in floating point.
        ignored: tensors beside the weights that nothing here reads, such as the scales of a cache.
    """

    method: str
    scheme_of: Callable[[str, Tensors], Scheme | None]
    ignored: str = r".*\.(k_scale|v_scale|q_scale|prob_scale|output_scale|kv_scale)"


class Fields:
    """The checked fields of ``quantization_config``; what is wrong raises a `ModelError` that names the field."""

    def __init__(self, fields: Mapping[str, Any], path: str = "quantization_config") -> None:
        self._fields, self.path = fields, path

    def get(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None, allowed: Sequence[int] = ()) -> int:
        value = self.get(name, default)
        if type(value) is not int or (allowed and value not in allowed):
            wanted = f"one of {', '.join(map(str, allowed))}" if allowed else "an integer"
            self.refuse(name, f"is {value!r}; it must be {wanted}")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            self.refuse(name, f"is {value!r}; it must be true or false")
        return bool(value)

    def names(self, name: str) -> list[str]:
        value = self.get(name, [])
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            self.refuse(name, "must be a list of names")
        return list(value)

    def object(self, name: str) -> Fields:
        value = self.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "must be an object")
        return Fields(value, f"{self.path}.{name}")

    def items(self) -> list[tuple[str, Any]]:
        return list(self._fields.items())

    def refuse(self, name: str, problem: str) -> NoReturn:
        raise ModelError(f"config.json: {self.path}.{name} {problem}.")


def is_kept(module: str, kept: Sequence[str]) -> bool:
    """Whether a module is among those that were not quantized: by name, by a part of its path, or by its last part."""
    dotted = f".{module}."
    return any(f".{name}." in dotted for name in kept)
