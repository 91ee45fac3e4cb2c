"""What each library makes of the keywords of JSON Schema, as found by experiment (tests/grammar/test_keywords.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sgl.engine.grammar.backend import BackendName
from sgl.engine.grammar.formats import FORMATS

Status = Literal["enforced", "approximated", "unsupported"]

ANNOTATIONS = frozenset(
    "title description default examples $comment deprecated readOnly writeOnly $schema discriminator".split()  # noqa: SIM905
)
"""They say nothing about which values are valid."""

CONTAINERS = frozenset({"$defs", "definitions"})
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

OF_TYPE: Mapping[str, str] = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("items", "prefixItems", "additionalItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), "object"),
    **dict.fromkeys(("propertyNames", "minProperties", "maxProperties"), "object"),
}
"""Keywords that speak about values of one type only."""

_EVERYWHERE = (
    *("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "minLength", "maxLength", "pattern", "format"),
    *("items", "prefixItems", "minItems", "maxItems", "properties", "required", "additionalProperties"),
)
_RANGES = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_ORDER = "properties come in the order in which the schema has them"


@dataclass(frozen=True)
class Dialect:
    """What a library understands.

    Args:
        enforced: keywords that every output obeys.
        approximated: those that outputs obey though not everything that is valid can come, or in all but rare cases;
            with the difference.
        formats: values of ``format`` that are enforced.
        combines: whether keywords beside each other all count, as the specification has it.
        is_recursive: whether a schema may refer to itself.
        quotes_patterns: whether a pattern is matched against the value of a string and not its JSON form.
        searches_patterns: whether a pattern without ^ and $ is found anywhere in the string.
        has_bare_patterns: whether the dot and classes such as \\w mean more than in JSON Schema, the closing quote too.
        has_bare_lengths: whether strings of a bounded length may hold characters that JSON must escape.
        closes_objects: whether open objects are closed, since other properties could have the names of declared ones.
        shifts_bounds: whether whole exclusive bounds of numbers need care.
        blanks: how many may stand around each symbol, beside the one behind commas and colons.
    """

    enforced: frozenset[str]
    approximated: Mapping[str, str] = field(default_factory=dict)
    formats: frozenset[str] = frozenset()
    approximated_formats: Mapping[str, str] = field(default_factory=dict)
    combines: bool = False
    is_recursive: bool = True
    quotes_patterns: bool = False
    searches_patterns: bool = False
    blanks: int = 0
    shifts_bounds: bool = False
    has_bare_patterns: bool = False
    has_bare_lengths: bool = False
    closes_objects: bool = False

    def status(self, keyword: str) -> tuple[Status, str]:
        """How far a keyword is kept, and what is to say about it."""
        if keyword in self.approximated:
            return "approximated", self.approximated[keyword]
        if keyword in self.enforced:
            return "enforced", ""
        return "unsupported", "it would not be enforced"


_PLAIN = "no character of such a string is escaped"
_LEAP = "February 29 also comes in years that have none"

DIALECTS: Mapping[BackendName, Dialect] = {
    "native": Dialect(
        enforced=frozenset((*_EVERYWHERE, *_RANGES)) - {"allOf"},
        approximated={"properties": _ORDER},
        formats=frozenset(FORMATS),
        combines=True,
        quotes_patterns=True,
        searches_patterns=True,
    ),
    "llguidance": Dialect(
        enforced=frozenset(
            (*_EVERYWHERE, *_RANGES, "multipleOf", "patternProperties", "minProperties", "maxProperties")
        ),
        approximated={"properties": _ORDER},
        formats=frozenset("time duration email hostname ipv4 ipv6 uuid uri".split()),  # noqa: SIM905
        approximated_formats={"date": _LEAP, "date-time": _LEAP},
        combines=True,
        quotes_patterns=True,
        shifts_bounds=True,
        searches_patterns=True,
    ),
    "xgrammar": Dialect(
        enforced=frozenset((*_EVERYWHERE, *_RANGES, "multipleOf", "propertyNames", "minProperties", "maxProperties")),
        approximated={"properties": _ORDER + ", and no others", "minLength": _PLAIN, "maxLength": _PLAIN},
        formats=frozenset("time duration email hostname ipv4 ipv6 uuid".split()),  # noqa: SIM905
        approximated_formats={"date": "every month may have 31 days", "date-time": "every month may have 31 days"},
        has_bare_lengths=True,
        closes_objects=True,
    ),
    "outlines": Dialect(
        enforced=frozenset(_EVERYWHERE) - {"prefixItems"},
        approximated={
            "properties": _ORDER + ", and no others",
            "additionalProperties": "no other properties come beside declared ones",
            "prefixItems": "all of the items come",
        },
        formats=frozenset({"uuid", "time", "email"}),
        approximated_formats={"date": "every month may have 31 days", "date-time": "every month may have 31 days"},
        is_recursive=False,
        has_bare_patterns=True,
        blanks=1,
    ),
}
