r"""Writes JSON schemas as rules of regular expressions, which automata run exactly; refuses what it cannot write.

A rule is a line; the first is the whole. ``(?&3)`` calls the rule in line 3, and ``(?"...)`` is every string in which
the pattern is found, in the one way in which JSON writes it: characters that must be escaped by their letter or number,
and no others. It reads schemas that `schema.analyse` has gone through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sgl.engine.base.errors import SglError
from sgl.engine.grammar.backend import SEPARATOR_BLANK
from sgl.engine.grammar.formats import FORMATS
from sgl.engine.grammar.keywords import TYPES
from sgl.engine.grammar.numbers import integers_between, numbers_between
from sgl.engine.grammar.schema import Schema, has_type

MAX_CHARS = 1 << 18
"""Of all rules, which the engine's own process reads; what takes more is for others."""

_MAX_NAME_CHARS = 256
"""Of a property beside which others may come: each is a group inside that of the one before."""

_ANY_CHAR = r"[\d\D]"
_STRING = rf'"(?"^{_ANY_CHAR}*$)"'
_INTEGER = "-?(?:0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"

_OF_TYPE: Mapping[str, frozenset[str]] = {
    "null": frozenset(),
    "boolean": frozenset(),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""The keywords that are written for each type."""


def rules_of(schema: Schema, whitespace: str | None = None) -> str:
    """
    Args:
        whitespace: what may stand between two symbols; None for one blank at most, after commas and colons.

    Raises:
        SglError: 400; something in it cannot be written so.
    """
    try:
        return _Lowering(schema, whitespace).text()
    except RecursionError:
        raise _refusal("it is nested too deeply", "#") from None


class _Lowering:
    def __init__(self, schema: Schema, whitespace: str | None) -> None:
        self._schema = schema
        self._rules: list[str] = []
        self._named: dict[object, int] = {}
        self._num_chars = 0
        self._blank = "" if whitespace is None else f"(?:{_one_line(whitespace)})?"
        self._comma = f",{SEPARATOR_BLANK}" if whitespace is None else f"{self._blank},{self._blank}"
        self._colon = f":{SEPARATOR_BLANK}" if whitespace is None else f"{self._blank}:{self._blank}"

    def text(self) -> str:
        self._rules.append("")
        self._write(0, self._value(self._schema, "#"))
        return "\n".join(self._rules)

    def _write(self, number: int, text: str) -> None:
        self._rules[number] = text
        self._num_chars += len(text) + 1
        if self._num_chars > MAX_CHARS:
            raise _too_large()

    def _call(self, key: object, write: Callable[[], str]) -> str:
        """The rule of that key, written when it is asked for first; it may call itself."""
        if key not in self._named:
            number = self._named[key] = len(self._rules)
            self._rules.append("")
            self._write(number, write())
        return f"(?&{self._named[key]})"

    def _rule(self, text: str) -> str:
        """A rule for what is needed in several places."""
        return self._call(("text", text), lambda: text) if len(text) > 16 else f"(?:{text})"

    # ---- values ------------------------------------------------------------------------------------------------------

    def _value(self, schema: Schema, pointer: str) -> str:
        if schema is True or schema == {}:
            return self._call("any", self._anything)
        if schema is False:
            raise _refusal("nothing is valid here", pointer)
        schema = {key: value for key, value in schema.items() if key != "$defs"}
        kinds = schema.pop("type", None)
        for name in ("$ref", "anyOf", "enum", "const"):
            if name in schema:
                return self._alone(name, schema, kinds, pointer)
        names = TYPES if kinds is None else [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
        if "number" in names:
            names = [name for name in names if name != "integer"]
        known = frozenset[str]().union(*_OF_TYPE.values())
        unknown = next((key for key in schema if key not in known), None)
        if unknown is not None:
            raise _refusal(f"{unknown} is not written as rules", f"{pointer}/{unknown}")
        found = _fitting(self._typed(name, _part(schema, _OF_TYPE[name]), pointer) for name in names)
        return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"

    def _alone(self, name: str, schema: dict[str, Any], kinds: Any, pointer: str) -> str:
        """Keywords that say everything about a value."""
        value = schema[name]
        if len(schema) > 1 or (kinds is not None and name in ("$ref", "anyOf")):
            raise _refusal(f"{name} beside others is not written as rules", f"{pointer}/{name}")
        match name:
            case "$ref":
                definition = value.removeprefix("#/$defs/")
                return self._call(("$ref", definition), lambda: self._definition(definition))
            case "anyOf":
                branches = (self._value(branch, f"{pointer}/anyOf/{i}") for i, branch in enumerate(value))
                return f"(?:{'|'.join(_fitting(branches))})"
        values = [item for item in (value if name == "enum" else [value]) if kinds is None or has_type(item, kinds)]
        if not values:
            raise _refusal("no value has the type", f"{pointer}/{name}")
        return f"(?:{'|'.join(_fitting(map(self._literal, values)))})"

    def _definition(self, name: str) -> str:
        assert isinstance(self._schema, dict)
        return self._value(self._schema["$defs"][name], f"#/$defs/{name}")

    def _typed(self, name: str, schema: dict[str, Any], pointer: str) -> str:
        match name:
            case "null":
                return "null"
            case "boolean":
                return "(?:true|false)"
            case "integer":
                return integers_between(schema) if schema else _INTEGER
            case "number":
                return numbers_between(schema) if schema else self._rule(_NUMBER)
            case "string":
                return self._string(schema, pointer)
            case "array":
                return self._array(schema, pointer)
        return self._object(schema, pointer)

    def _anything(self) -> str:
        value, string = "(?&1)", self._rule(_STRING)
        if self._named["any"] != 1:
            value = f"(?&{self._named['any']})"
        member = f"{string}{self._colon}{value}"
        return (
            f"null|true|false|{self._rule(_NUMBER)}|{string}|"
            rf"\[{self._blank}(?:{value}(?:{self._comma}{value})*{self._blank})?\]|"
            rf"\{{{self._blank}(?:{member}(?:{self._comma}{member})*{self._blank})?\}}"
        )

    def _literal(self, value: Any) -> str:
        match value:
            case list():
                items = self._comma.join(map(self._literal, value))
                return rf"\[{self._blank}{items}{self._blank if value else ''}\]"
            case dict():
                members = (f"{_escaped(_quoted(key))}{self._colon}{self._literal(item)}" for key, item in value.items())
                return rf"\{{{self._blank}{self._comma.join(members)}{self._blank if value else ''}\}}"
            case str():
                return _escaped(_quoted(value))
        return _escaped(json.dumps(value))

    # ---- strings -----------------------------------------------------------------------------------------------------

    def _string(self, schema: dict[str, Any], pointer: str) -> str:
        if not schema:
            return self._rule(_STRING)
        if "pattern" in schema or "format" in schema:
            if len(schema) > 1:
                raise _refusal("several conditions of one string are not written as rules", pointer)
            pattern = schema.get("pattern")
            if pattern is None:
                pattern = FORMATS.get(schema["format"])
            if pattern is None:
                raise _refusal(f"the format {schema['format']!r:.40} is not written as rules", f"{pointer}/format")
            if "format" in schema:
                pattern = f"^(?:{pattern})$"
            return f'"(?"{_one_line(pattern)})"'
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if most is not None and most < least:
            raise _refusal("no number of characters is valid", pointer)
        char = self._rule(f'(?"^{_ANY_CHAR}$)')
        return f'"{_times(char, least, most)}"'

    # ---- arrays and objects ------------------------------------------------------------------------------------------

    def _array(self, schema: dict[str, Any], pointer: str) -> str:
        first = schema.get("prefixItems", [])
        least, most, rest = schema.get("minItems", 0), schema.get("maxItems"), schema.get("items", True)
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and most < least:
            raise _refusal("no number of items is valid", pointer)
        heads = _fitting(self._value(item, f"{pointer}/prefixItems/{i}") for i, item in enumerate(first[:most]))
        tail = self._rule(self._value(rest, f"{pointer}/items")) if most is None or most > len(heads) else ""
        return rf"\[{self._blank}{self._items(heads, tail, least, most)}\]"

    def _items(self, heads: Sequence[str], tail: str, least: int, most: int | None) -> str:
        """Items in order, then any number of further ones; those that need not come are groups inside each other."""
        count = len(heads)
        further = None if most is None else most - count
        if not heads:
            if not tail:
                return ""
            others = _times(f"(?:{self._comma}{tail})", max(least - 1, 0), None if most is None else most - 1)
            return f"{tail}{others}{self._blank}" if least else f"(?:{tail}{others}{self._blank})?"
        text = [
            f"{'(?:' if index >= least else ''}{self._comma if index else ''}{head}" for index, head in enumerate(heads)
        ]
        if tail:
            text.append(_times(f"(?:{self._comma}{tail})", max(least - count, 0), further))
        text.append(self._blank)
        text += [f"|{self._blank})" if index else ")?" for index in range(count - 1, least - 1, -1)]
        return "".join(text)

    def _object(self, schema: dict[str, Any], pointer: str) -> str:
        properties, required = dict(schema.get("properties", {})), list(dict.fromkeys(schema.get("required", ())))
        others = schema.get("additionalProperties", True)
        for name in required:
            if name not in properties:
                if others is False:
                    raise _refusal(f"{name!r:.40} is required and forbidden", f"{pointer}/required")
                properties[name] = others
        needed = set(required)
        names = [name for name, value in properties.items() if value is not False or name in needed]
        texts = _fitting(
            f"{_escaped(_quoted(name))}{self._colon}{self._value(properties[name], f'{pointer}/properties/{name}')}"
            for name in names
        )
        members = [(text, name in needed) for text, name in zip(texts, names, strict=True)]
        more = ""
        if others is not False:
            long = next((name for name in properties if len(name) > _MAX_NAME_CHARS), None)
            if long is not None:
                raise _refusal(f"{long!r:.40}... has more than {_MAX_NAME_CHARS} characters", f"{pointer}/properties")
            name = rf'"(?"^{_other_than(properties)}$)"' if properties else self._rule(_STRING)
            more = self._rule(f"{name}{self._colon}{self._value(others, f'{pointer}/additionalProperties')}")
        return self._rule(rf"\{{{self._blank}{self._members(members, more)}\}}")

    def _members(self, members: Sequence[tuple[str, bool]], more: str) -> str:
        """Members in order, of which some need not come, with commas between those that do."""
        behind = [
            f"(?:{self._comma}{more})*{self._blank}" if more else self._blank
        ]  # what follows a member, from the last
        for text, is_required in reversed(members):
            own = f"{self._comma}{text}"
            behind.append(self._rule(f"{own if is_required else f'(?:{own})?'}{behind[-1]}"))
        firsts = []
        for (text, is_required), rest in zip(members, reversed(behind[:-1]), strict=True):
            firsts.append(f"{text}{rest}")
            if is_required:
                return f"(?:{'|'.join(firsts)})"
        if more:
            firsts.append(f"{more}{behind[0]}")
        return f"(?:{'|'.join(firsts)})?" if firsts else ""


# ---- texts -----------------------------------------------------------------------------------------------------------


def _part(schema: dict[str, Any], keywords: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key in keywords}


def _times(text: str, least: int, most: int | None) -> str:
    if most is None:
        return f"{text}*" if least == 0 else f"{text}{{{least},}}"
    return "" if most == 0 else f"{text}{{{least},{most}}}"


def _quoted(text: str) -> str:
    """In the one way in which rules write JSON strings."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """A regular expression of one text."""
    return "".join(char if char.isalnum() or char in ' "<>,:' else _point(char) for char in text)


def _point(char: str) -> str:
    """A character, within a set or not."""
    code = ord(char)
    if code < 0x80 and char.isprintable() and not char.isalnum() and char not in " <>":
        return f"\\{char}"
    return f"\\x{code:02x}" if code < 0x20 else char


def _fitting(texts: Iterable[str]) -> list[str]:
    """Texts of one rule, made one by one, as long as it has room for them."""
    found, num_chars = [], 0
    for text in texts:
        found.append(text)
        num_chars += len(text)
        if num_chars > MAX_CHARS:
            raise _too_large()
    return found


def _one_line(pattern: str) -> str:
    """Without line breaks, which end a rule; a backslash before one means nothing."""
    return re.sub(r"\\[^\n]|\\?\n", lambda found: r"\n" if found[0].endswith("\n") else found[0], pattern)


def _other_than(names: Iterable[str]) -> str:
    """A pattern of all texts but some: along the tree of those, whatever leaves it."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for char in name:
            node = node.setdefault(char, {})
        node[""] = {}
    return _leaving(tree)


def _leaving(tree: dict[str, Any]) -> str:
    text: list[str] = []
    open_parts: list[str | dict[str, Any]] = [tree]  # what is still to be written, the next one last
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, str):
            text.append(part)
            continue
        chars = [char for char in part if char]
        if not chars:
            text.append(f"{_ANY_CHAR}+" if "" in part else f"{_ANY_CHAR}*")
            continue
        text.append(f"(?:[^{''.join(map(_point, chars))}]{_ANY_CHAR}*")
        open_parts.append(")" if "" in part else "|)")
        for char in reversed(chars):
            open_parts += [part[char], f"|{_point(char)}"]
    return "".join(text)


def _too_large() -> SglError:
    return _refusal(f"its rules have more than {MAX_CHARS} characters", "#")


def _refusal(reason: str, pointer: str) -> SglError:
    message = f"json_schema at {pointer:.200} cannot be written for the native backend: {reason}."
    return SglError(message, code="unsupported_schema", param="json_schema")
