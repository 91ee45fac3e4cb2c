"""Turns an annotated dataclass field into an option: its names, its parser and its error sentences.

Knows nothing about which options exist (config.py) or where values come from (sources.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Union, cast

from sgl.engine.base.errors import ConfigError

Value = str | int | float | bool | tuple[str, ...] | None
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_KIND_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", tuple: "a list"}


@dataclass(frozen=True)
class Declaration:
    """What a field says about itself beside its type and default.

    Args:
        help: one or two sentences for ``--help`` and the documentation.
        flags: command line names, the canonical one first.
        env: environment variables beside the uniform ``SGL_<NAME>``.
        minimum, maximum: inclusive bounds of a number.
        metavar: what stands for the value in ``--help``.
        secret: never shown.
        later: values that SGLang knows and this version does not.
    """

    help: str
    flags: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str = ""
    secret: bool = False
    later: tuple[str, ...] = ()


def option(
    default: Value,
    help: str,
    *,
    flags: Sequence[str] = (),
    env: str | Sequence[str] = (),
    min: float | None = None,
    max: float | None = None,
    metavar: str = "",
    secret: bool = False,
    later: Sequence[str] = (),
) -> Any:
    """Declares a configuration field; see `Declaration`. The choices are those of a ``Literal`` annotation."""
    names = (env,) if isinstance(env, str) else tuple(env)
    declaration = Declaration(help, tuple(flags), names, min, max, metavar, secret, tuple(later))
    return dataclasses.field(default=default, metadata={"option": declaration})


def closest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known word nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


@dataclass(frozen=True)
class Option:
    """One option of one group: everything that the command line, the files and the documentation need."""

    group: str
    field: str
    default: Value
    annotation: Any
    declaration: Declaration

    @property
    def key(self) -> str:
        """``group.field``, the name under which values and provenance are kept."""
        return f"{self.group}.{self.field}"

    @cached_property
    def flags(self) -> tuple[str, ...]:
        return self.declaration.flags or ("--" + self.field.replace("_", "-"),)

    @property
    def name(self) -> str:
        """The canonical flag as an identifier: the name in flat dictionaries, files and keyword arguments."""
        return _identifier(self.flags[0])

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset({self.name, self.key, *map(_identifier, self.flags)})

    @property
    def env(self) -> tuple[str, ...]:
        """Environment variables, the uniform one first."""
        return (f"SGL_{self.name.upper()}", *self.declaration.env)

    @cached_property
    def _parts(self) -> tuple[type, bool, tuple[str, ...]]:
        return _analyse(self.annotation)

    @property
    def kind(self) -> type:
        """str, int, float, bool or tuple."""
        return self._parts[0]

    @property
    def optional(self) -> bool:
        return self._parts[1]

    @property
    def choices(self) -> tuple[str, ...]:
        return self._parts[2]

    @property
    def metavar(self) -> str:
        if self.declaration.metavar:
            return self.declaration.metavar
        if self.choices:
            return "|".join(self.choices)
        return {int: "INTEGER", float: "NUMBER", tuple: "TEXT"}.get(self.kind, "TEXT")

    def show(self, value: object) -> str:
        """The value as text for people: secrets hidden, lists joined, nothing as a dash."""
        if value is None or value == () or value == "":
            return "-"
        if self.declaration.secret:
            return "********"
        if isinstance(value, tuple):
            return ", ".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def parse(self, value: object, where: str) -> Value:
        """Converts text (or an already typed value) to the field's type.

        Args:
            value: what the user gave.
            where: the name the user gave it under, for the sentence.

        Raises:
            ConfigError: the value cannot be used.
        """
        label = where if where in self.flags else f"{where} ({self.flags[0]})"
        if value is None and self.optional:
            return None
        parsed = _CONVERT[self.kind](value)
        if parsed is None:
            raise ConfigError(f"{label} must be {_KIND_NAMES[self.kind]}, got {value!r}.", param=self.flags[0])
        self._check(parsed, label)
        return parsed

    def _check(self, value: Value, label: str) -> None:
        flag, spec = self.flags[0], self.declaration
        if str(value) in spec.later:
            raise ConfigError(f"{label} {value} is not supported by this version of sgl.", param=flag)
        if self.choices and value not in self.choices:
            allowed = ", ".join(self.choices)
            hint = closest(str(value), self.choices)
            raise ConfigError(f"{label} must be one of {allowed}, got '{value}'.{hint}", param=flag)
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{label} must not contain NUL characters.", param=flag)
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = spec.minimum, spec.maximum
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise ConfigError(f"{label} must be {_bounds(low, high)}, got {value}.", param=flag)


def options_of(group: str, cls: type) -> tuple[Option, ...]:
    """The options that a group's dataclass declares, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return tuple(
        Option(group, f.name, cast(Value, f.default), hints[f.name], f.metadata["option"])
        for f in dataclasses.fields(cls)
        if "option" in f.metadata
    )


def index(options: Iterable[Option]) -> Mapping[str, Option]:
    """Every name that an option answers to: ``page_size``, ``cache.page_size``, its aliases."""
    table: dict[str, Option] = {}
    for item in options:
        for name in item.names:
            if table.setdefault(name, item) is not item:
                raise AssertionError(f"two options answer to {name}: {table[name].key} and {item.key}")
    return table


def _identifier(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _bounds(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low:g}" if low is not None else f"at most {high:g}"
    return f"{low:g}" if low == high else f"between {low:g} and {high:g}"


def _analyse(annotation: Any) -> tuple[type, bool, tuple[str, ...]]:
    """(kind, may be None, choices) of a field's annotation."""
    members = [annotation]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = list(typing.get_args(annotation))
    kinds = [m for m in members if m is not types.NoneType]
    assert len(kinds) == 1, f"an option has one type, not {annotation}"
    if typing.get_origin(kinds[0]) is Literal:
        return str, len(members) > 1, typing.get_args(kinds[0])
    return typing.get_origin(kinds[0]) or kinds[0], len(members) > 1, ()


def _to_int(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _to_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) != float("inf") and number == number else None


def _to_bool(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def _to_str(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _to_tuple(value: object) -> tuple[str, ...] | None:
    """Text, or a list of texts, each of which may hold several with commas between."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return None
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip())


_CONVERT: Mapping[type, typing.Callable[[object], Value]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_str,
    tuple: _to_tuple,
}
