"""What a model family is, and the checked view of a checkpoint's config.json that families read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.spec import ModelSpec, RopeSpec, WeightNames

_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_ROPE_FIELDS = ("rope_type", "type", "rope_theta")


class HfConfig:
    """The fields of config.json, checked when they are read.

    A null counts as missing. All methods raise `ModelError` naming the field if it is missing and no default is given,
    or if it is of another type.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value: int = self._get(name, int, default)
        if value <= 0:
            raise ModelError(f"config.json: {name} is {value}; it must be positive.")
        return value

    def count(self, name: str, default: int) -> int:
        """An integer from 0 on."""
        value: int = self._get(name, int, default)
        if value < 0:
            raise ModelError(f"config.json: {name} is {value}; it must not be negative.")
        return value

    def optional_integer(self, name: str, default: int) -> int | None:
        """A positive integer; here null is a value of its own."""
        return None if self._fields.get(name, default) is None else self.integer(name, default)

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._get(name, float, default))

    def optional_number(self, name: str, default: float) -> float | None:
        """A number; here null is a value of its own."""
        return None if self._fields.get(name, default) is None else self.number(name, default)

    def size(self, name: str) -> int:
        """How many entries an object has; 0 if it is missing."""
        return len(self.object(name))

    def flag(self, name: str, default: bool) -> bool:
        value: bool = self._get(name, bool, default)
        return value

    def text(self, name: str, default: str) -> str:
        value: str = self._get(name, str, default)
        return value

    def texts(self, name: str) -> list[str] | None:
        """A list of strings; None if it is missing."""
        value = self._fields.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ModelError(f"config.json: {name} must be a list of strings.")
        return value

    def counts(self, name: str) -> list[int]:
        """A list of integers from 0 on; an empty one if it is missing."""
        value = self._fields.get(name) or []
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise ModelError(f"config.json: {name} must be a list of integers that are not negative.")
        return value

    def rope(self, head_dim: int, max_positions: int) -> RopeSpec:
        """Reads ``rope_parameters`` or, as older checkpoints have it, ``rope_theta`` and ``rope_scaling``."""
        current, former = self.object("rope_parameters"), self.object("rope_scaling")
        fields = {**(former or current)}
        thetas = (scope.get("rope_theta") for scope in (fields, self._fields, current))
        fields["rope_theta"] = next((theta for theta in thetas if theta is not None), 10000.0)
        fields.setdefault("original_max_position_embeddings", max_positions)
        checked = HfConfig(fields)
        if checked.number("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError("config.json: a partial_rotary_factor other than 1 is not supported.")
        kind = checked.text("rope_type", checked.text("type", "default"))
        numbers = {name: value for name, value in fields.items() if isinstance(value, (int, float))}
        parameters = {name: value for name, value in numbers.items() if name not in _ROPE_FIELDS}
        return RopeSpec(head_dim, checked.number("rope_theta"), max_positions, kind, parameters)

    def object(self, name: str) -> dict[str, Any]:
        """An object; an empty one if it is missing."""
        value = self._fields.get(name) or {}
        if not isinstance(value, dict):
            raise ModelError(f"config.json: {name} must be an object.")
        return value

    def _get(self, name: str, kind: type, default: Any) -> Any:
        value = self._fields.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json: {name} is missing.")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ModelError(f"config.json: {name} is {value!r}; it must be {_KINDS[kind]}.")
        return value


@dataclass(frozen=True, slots=True)
class Family:
    """A group of architectures that one function describes.

    Attributes:
        architectures: names in config.json's ``architectures``.
        spec: the architecture of a checkpoint as data.
        names: what its tensors are called.
        tool_parser: the format in which its models call tools by default; empty if they do not.
        reasoning_parser: the same for reasoning.
    """

    name: str
    architectures: tuple[str, ...]
    spec: Callable[[HfConfig], ModelSpec]
    names: WeightNames
    tool_parser: str = ""
    reasoning_parser: str = ""
