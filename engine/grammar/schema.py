"""Reads a JSON schema keyword by keyword: what a library would enforce, and the equal schema that it understands best.

Nothing is left out in silence: a keyword is enforced, approximated (and it is said how) or refused with its pointer.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from sgl.engine.base.errors import SglError
from sgl.engine.grammar.bounds import Bounds
from sgl.engine.grammar.disjoint import are_disjoint
from sgl.engine.grammar.keywords import ANNOTATIONS, CONTAINERS, OF_TYPE, TYPES, Dialect, Status
from sgl.engine.grammar.limits import MAX_NESTING
from sgl.engine.grammar.patterns import facts_of, is_anchored

Schema = dict[str, Any] | bool

MAX_NODES = 20_000
MAX_JSON_NESTING = 256
"""Of objects and arrays, values in ``const`` and ``enum`` among them."""

_MAX_FLOAT = sys.float_info.max
_LEAST_STEP = 1e-15
"""Between a bound and the next number: smaller ones have hundreds of digits."""

_COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties".split())  # noqa: SIM905
_NUMBERS = frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split())  # noqa: SIM905
_SCHEMAS = frozenset({"items", "additionalProperties", "propertyNames"})
_SCHEMA_LISTS = frozenset({"prefixItems", "anyOf", "oneOf", "allOf"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties"})
_COMBINERS = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")


@dataclass(frozen=True)
class Finding:
    """What becomes of one keyword; ``note`` says how it is approximated or why it is not supported."""

    pointer: str
    keyword: str
    status: Status
    note: str = ""


@dataclass(frozen=True)
class Analysis:
    """
    Args:
        schema: equal to the one analysed, in the words of the library; of use if nothing is unsupported.
        max_bytes: of the longest output; None if there is no longest.
    """

    findings: tuple[Finding, ...]
    schema: Schema
    max_bytes: int | None

    def check(self) -> None:
        """
        Raises:
            SglError: 400, naming the first keyword that would not be enforced.
        """
        for finding in self.findings:
            if finding.status == "unsupported":
                raise _refusal(finding)


def analyse(source: str, dialect: Dialect) -> Analysis:
    """
    Raises:
        SglError: 400; it is not a JSON schema at all.
    """
    try:
        schema = json.loads(source)
        _check_values(schema)
        return Analyser(schema, dialect).run()
    except json.JSONDecodeError as error:
        raise _wrong(f"json_schema is not valid JSON: {error}") from None
    except RecursionError:
        raise _wrong("json_schema is nested too deeply, or refers from one definition to the next too often") from None
    except ValueError:  # of Python, which does not read longer ones
        raise _wrong(f"json_schema has a number of more than {sys.get_int_max_str_digits()} digits") from None


def _check_values(schema: Any) -> None:
    """Refuses what Python reads and JSON does not have, or nobody can write: outputs may be made of it.

    Raises:
        SglError: 400, with the pointer to it.
    """
    waiting: list[tuple[Any, tuple[object, ...]]] = [(schema, ())]
    while waiting:
        value, path = waiting.pop()
        if len(path) > MAX_JSON_NESTING:
            raise _wrong(f"json_schema: {_pointer(path):.300} is nested more than {MAX_JSON_NESTING} deep")
        match value:
            case dict():
                if not all(map(_is_text, value)):
                    raise _wrong(f"json_schema: {_pointer(path):.300} has a name with half a surrogate pair")
                waiting += [(item, (*path, name)) for name, item in value.items()]
            case list():
                waiting += [(item, (*path, index)) for index, item in enumerate(value)]
            case str() if not _is_text(value):
                raise _wrong(f"json_schema: {_pointer(path):.300} has half a surrogate pair, which is no character")
            case int() | float() if not -_MAX_FLOAT <= value <= _MAX_FLOAT:
                raise _wrong(f"json_schema: {_pointer(path):.300} must be a number that 64-bit floats have")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pointer(path: Iterable[object]) -> str:
    return reduce(_at, path, "#")


class Analyser:
    """One walk through a schema. Whatever is referred to moves to ``$defs`` of the new one, under a new name."""

    def __init__(self, schema: Any, dialect: Dialect) -> None:
        self._root = schema
        self._dialect = dialect
        self._findings: list[Finding] = []
        self._names: dict[str, str] = {}  # by pointer, of what is referred to
        self._waiting: list[str] = []
        self._num_nodes = 0

    def run(self) -> Analysis:
        schema = self._node(self._root, "#", 0)
        definitions: dict[str, Schema] = {}
        while self._waiting:
            pointer = self._waiting.pop()
            definitions[self._names[pointer]] = self._node(self._resolve(pointer), pointer, 0)
        bounds = Bounds(schema, definitions, self._dialect.blanks)
        if not bounds.can_end():
            self._note("#", "$ref", "unsupported", "no finite value is valid")
        if bounds.is_recursive and not self._dialect.is_recursive:
            self._note("#", "$ref", "unsupported", "the schema refers to itself")
        if definitions and isinstance(schema, dict):
            schema = {**schema, "$defs": definitions}
        return Analysis(tuple(self._findings), schema, bounds.max_bytes())

    # ---- the walk ----------------------------------------------------------------------------------------------------

    def _node(self, schema: Any, pointer: str, depth: int) -> Schema:
        if isinstance(schema, bool):
            if not schema and not self._dialect.combines:
                self._note(pointer, "false", "unsupported", "nothing is valid here")
            return schema or False
        if not isinstance(schema, dict):
            raise _wrong(f"json_schema: {pointer} must be an object or a boolean")
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or depth > MAX_NESTING:
            raise _wrong(f"json_schema has more than {MAX_NODES} subschemas, or some more than {MAX_NESTING} deep")
        schema = _modern(schema, pointer)
        written: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in ANNOTATIONS or keyword in CONTAINERS or keyword.startswith("x-"):
                continue
            if (keyword == "uniqueItems" and value is False) or (keyword == "$id" and pointer == "#"):
                continue
            written[keyword] = self._keyword(schema, keyword, value, pointer, depth)
        if self._dialect.shifts_bounds and schema.get("type") != "integer":
            _shift_bounds(written)
        if not self._dialect.combines:
            self._check_neighbours(schema, written, pointer)
        if self._dialect.closes_objects and written.get("properties"):
            if written.get("additionalProperties", True) in (True, {}):
                written["additionalProperties"] = False
            elif written["additionalProperties"] is not False:
                note = "other properties beside declared ones would not be checked"
                self._note(_at(pointer, "additionalProperties"), "additionalProperties", "unsupported", note)
        if self._dialect.has_bare_lengths:
            _write_lengths(written)
        if "oneOf" in written and are_disjoint(written["oneOf"]):  # then anyOf is the same, and every library knows it
            if "anyOf" in written:
                written["allOf"] = [*written.get("allOf", ()), {"anyOf": written.pop("oneOf")}]
            else:
                written["anyOf"] = written.pop("oneOf")
        elif "oneOf" in written:
            self._note(_at(pointer, "oneOf"), "oneOf", "unsupported", "two of its branches may be valid at once")
        return written

    def _keyword(self, schema: dict[str, Any], keyword: str, value: Any, pointer: str, depth: int) -> Any:
        """Notes what becomes of a keyword and returns its value for the new schema."""
        place = _at(pointer, keyword)
        check_value(keyword, value, place)
        status, note = self._dialect.status(keyword)
        special = _SPECIAL.get(keyword)
        if special is not None and status != "unsupported":
            status, note = special(self._dialect, schema, value) or (status, note)
        self._note(place, keyword, status, note)
        if keyword == "$ref":
            return self._reference(value, place)
        if keyword == "additionalProperties" and value is False:
            return value  # closes the object, which every library knows
        if keyword in _SCHEMAS:
            return self._node(value, place, depth + 1)
        if keyword in _SCHEMA_LISTS:
            return [self._node(item, _at(place, index), depth + 1) for index, item in enumerate(value)]
        if keyword in _SCHEMA_MAPS:
            return {name: self._node(item, _at(place, name), depth + 1) for name, item in value.items()}
        return value

    def _reference(self, reference: str, place: str) -> str:
        if not reference.startswith("#") or reference[1:2] not in ("", "/"):
            self._note(place, "$ref", "unsupported", "only pointers into the same schema (#/...) are followed")
            return reference
        if reference not in self._names:
            self._resolve(reference)
            self._names[reference] = f"d{len(self._names)}"
            self._waiting.append(reference)
        return f"#/$defs/{self._names[reference]}"

    def _resolve(self, reference: str) -> Any:
        """
        Raises:
            SglError: 400; there is nothing in that place.
        """
        found = self._root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise _wrong(f"json_schema: the reference {reference:.200} leads nowhere")
        return found

    def _check_neighbours(self, schema: Mapping[str, Any], written: dict[str, Any], pointer: str) -> None:
        """Refuses what a library would forget because of what stands beside it."""
        combiners = [name for name in _COMBINERS if name in written]
        others = [name for name in written if name not in combiners]
        if combiners and others == ["type"] and combiners[0] in ("enum", "const"):
            self._filter(written, pointer)
            others = []
        if len(combiners) > 1 or (combiners and others):
            beside = (combiners[1:] or others)[0]
            self._note(_at(pointer, beside), beside, "unsupported", f"it is forgotten beside {combiners[0]}")
        if len(written.get("allOf", ())) > 1:
            self._note(_at(pointer, "allOf"), "allOf", "unsupported", "only one of its branches would be enforced")
        kind = written.get("type")
        for name in written:
            wanted = OF_TYPE.get(name)
            if wanted is not None and kind not in (wanted, "integer" if wanted == "number" else wanted):
                self._note(_at(pointer, name), name, "unsupported", f'it needs "type": "{wanted}" beside it')
        strings = [name for name in ("pattern", "format", "minLength", "maxLength") if name in written]
        if len(strings) > 1 and strings[0] in ("pattern", "format"):
            self._note(_at(pointer, strings[1]), strings[1], "unsupported", f"it is forgotten beside {strings[0]}")
        for name in written.get("required", ()):
            if name not in schema.get("properties", {}):
                note = f"{name!r:.80} is not among the properties"
                self._note(_at(pointer, "required"), "required", "unsupported", note)
                break

    def _filter(self, written: dict[str, Any], pointer: str) -> None:
        """Leaves the values of the right type, so that the type need not be named."""
        kinds = written.pop("type")
        values = written["enum"] if "enum" in written else [written["const"]]
        fitting = [value for value in values if has_type(value, kinds)]
        if not fitting:
            raise _wrong(f"json_schema: {pointer} has no value of its type")
        if "enum" in written:
            written["enum"] = fitting

    def _note(self, pointer: str, keyword: str, status: Status, note: str = "") -> None:
        known = self._findings[-1] if self._findings else None
        if known is not None and (known.pointer, known.keyword) == (pointer, keyword):
            self._findings.pop()
        self._findings.append(Finding(pointer, keyword, status, note))


# ---- single keywords -------------------------------------------------------------------------------------------------

Judgement = tuple[Status, str] | None


def _judge_pattern(dialect: Dialect, schema: Mapping[str, Any], pattern: str) -> Judgement:
    facts = facts_of(pattern)
    if facts.looks_around:
        return "unsupported", "look-around, back references and word boundaries are not supported"
    if not dialect.quotes_patterns and facts.names_escaped:
        return "unsupported", "characters that JSON escapes are not supported in patterns"
    if dialect.has_bare_patterns and (facts.is_broad or facts.is_named):
        return "unsupported", "a dot, a negated or a named class would match more than JSON Schema says"
    begins, ends = is_anchored(pattern)
    if dialect.searches_patterns or (begins and ends):
        return None
    if begins or ends:
        return "unsupported", "a pattern must have both ^ and $, or neither"
    return "approximated", "the whole string matches the pattern"


def _judge_format(dialect: Dialect, schema: Mapping[str, Any], name: str) -> Judgement:
    if name in dialect.approximated_formats:
        return "approximated", dialect.approximated_formats[name]
    return None if name in dialect.formats else ("unsupported", f"the format {name!r:.80} is not enforced")


def _judge_multiple(dialect: Dialect, schema: Mapping[str, Any], value: float) -> Judgement:
    if dialect.combines or (schema.get("type") == "integer" and float(value).is_integer()):
        return None
    return "unsupported", "only for integers"


_SPECIAL: Mapping[str, Callable[[Dialect, Mapping[str, Any], Any], Judgement]] = {
    "pattern": _judge_pattern,
    "format": _judge_format,
    "multipleOf": _judge_multiple,
}


def check_value(keyword: str, value: Any, place: str) -> None:
    """
    Raises:
        SglError: 400; the keyword cannot have that value.
    """
    for is_meant, is_fine, wanted in _VALUES:
        if is_meant(keyword):
            if not is_fine(value):
                raise _wrong(f"json_schema: {place} must be {wanted}")
            return


_VALUES: tuple[tuple[Callable[[str], bool], Callable[[Any], bool], str], ...] = (
    (_COUNTS.__contains__, lambda v: type(v) is int and 0 <= v < 2**31, "an integer from 0 to 2147483647"),
    (_NUMBERS.__contains__, lambda v: type(v) in (int, float) and abs(v) < 2**63, "a number of less than 64 bits"),
    (lambda k: k in ("pattern", "format", "$ref"), lambda v: isinstance(v, str), "a string"),
    (lambda k: k == "enum", lambda v: isinstance(v, list) and bool(v), "an array of at least one value"),
    (lambda k: k == "required", lambda v: _items(v, str), "an array of strings"),
    (_SCHEMA_LISTS.__contains__, lambda v: _items(v, dict, bool) and bool(v), "an array of schemas"),
    (_SCHEMA_MAPS.__contains__, lambda v: isinstance(v, dict), "an object of schemas"),
    (
        lambda k: k == "type",
        lambda v: v in TYPES if isinstance(v, str) else _items(v, str) and bool(v) and set(v) <= set(TYPES),
        "one of the seven types, or an array of them",
    ),
)


def has_type(value: Any, kinds: str | list[str]) -> bool:
    """Whether a value has one of the types that a schema names."""
    names = {kinds} if isinstance(kinds, str) else set(kinds)
    return not names.isdisjoint(_types_of(value))


def _types_of(value: Any) -> Iterator[str]:
    match value:
        case None:
            yield "null"
        case bool():
            yield "boolean"
        case int() | float():
            yield "number"
            if isinstance(value, int) or value.is_integer():
                yield "integer"
        case str():
            yield "string"
        case list():
            yield "array"
        case dict():
            yield "object"


def _shift_bounds(schema: dict[str, Any]) -> None:
    """Puts closed bounds for whole open ones, next to them, as far as numbers of 64 bits go.

    llguidance 1.9 takes 7 for a value above 7 if all values are below 8.
    """
    for open_name, closed_name, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        bound = schema.get(open_name)
        if bound is not None and float(bound).is_integer():
            del schema[open_name]
            shifted = bound + sign * max(math.ulp(bound), _LEAST_STEP)
            schema[closed_name] = max(shifted, schema.get(closed_name, shifted), key=lambda value: sign * value)


def _write_lengths(schema: dict[str, Any]) -> None:
    """Puts a pattern for the lengths of a string, which leaves out what must be escaped."""
    if "pattern" in schema or not {"minLength", "maxLength"} & schema.keys():
        return
    least, most = schema.pop("minLength", 0), schema.pop("maxLength", "")
    schema["pattern"] = f'^[^"\\\\\\x00-\\x1f]{{{least},{most}}}$'


def _modern(schema: dict[str, Any], pointer: str) -> dict[str, Any]:
    """Tuples as drafts before 2020-12 write them, in today's words."""
    if not isinstance(schema.get("items"), list):
        if "additionalItems" in schema and "prefixItems" not in schema:
            return {key: value for key, value in schema.items() if key != "additionalItems"}  # it had no effect
        return schema
    rest = {"items": schema["additionalItems"]} if "additionalItems" in schema else {}
    kept = {key: value for key, value in schema.items() if key not in ("items", "additionalItems")}
    return {**kept, "prefixItems": schema["items"], **rest}


def _items(value: Any, *kinds: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kinds) for item in value)


def _at(pointer: str, part: object) -> str:
    return f"{pointer}/{str(part).replace('~', '~0').replace('/', '~1')}"


def _wrong(message: str) -> SglError:
    return SglError(message + ".", code="invalid_schema", param="json_schema")


def _refusal(finding: Finding) -> SglError:
    message = f"json_schema: {finding.keyword} at {finding.pointer:.300} is not supported: {finding.note}."
    return SglError(message, code="unsupported_schema", param="json_schema")
