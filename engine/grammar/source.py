"""Turns what a client sent as a grammar into what a library shall compile; refuses what it would not keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar.backend import BackendName
from sgl.engine.grammar.keywords import DIALECTS
from sgl.engine.grammar.limits import check_nesting, check_source
from sgl.engine.grammar.lowering import rules_of
from sgl.engine.grammar.schema import analyse
from sgl.engine.grammar.tags import modern_tag

MAX_BLANKS = 2
"""Between two symbols of JSON inside a structural tag."""


@dataclass(frozen=True)
class Prepared:
    """A grammar that may be compiled.

    Args:
        literal_text: what it wants to see letter for letter, in which special tokens may be meant.
    """

    grammar: Grammar
    literal_text: str = ""


def prepare(grammar: Grammar, backend: BackendName) -> Prepared:
    """
    Raises:
        SglError: 400; it is too large, malformed, or asks for what the library does not enforce.
    """
    check_at_a_glance(grammar)
    match grammar.kind:
        case "json_schema":
            return Prepared(Grammar("json_schema", prepared_schema(grammar.source, backend)))
        case "structural_tag":
            tag = modern_tag(grammar.source)
            for schema in _schemas(tag):
                schema["json_schema"] = json.loads(prepared_schema(json.dumps(schema["json_schema"]), backend))
                schema["max_whitespace_cnt"] = min(schema.get("max_whitespace_cnt") or MAX_BLANKS, MAX_BLANKS)
            return Prepared(Grammar("structural_tag", json.dumps(tag)), "\n".join(_literals(tag)))
    if grammar.kind == "regex":
        return Prepared(Grammar("regex", _unanchored(grammar.source)))
    return Prepared(grammar)


def check_at_a_glance(grammar: Grammar) -> None:
    """What can be said without a library.

    Raises:
        SglError: 400; it is too large, nested too deeply, or no text.
    """
    check_source(grammar.source, grammar.kind)
    try:
        grammar.source.encode()
    except UnicodeEncodeError as error:
        message = f"{grammar.kind} has half a surrogate pair at position {error.start}, which is no character."
        raise SglError(message, code="invalid_grammar", param=grammar.kind) from None
    if grammar.kind in ("regex", "ebnf"):
        check_nesting(grammar.source, grammar.kind)


def lowered(grammar: Grammar, whitespace: str | None) -> Grammar:
    """A JSON schema as rules for the native backend.

    Raises:
        SglError: 400; it has something that cannot be written so.
    """
    check_at_a_glance(grammar)
    analysis = analyse(grammar.source, DIALECTS["native"])
    analysis.check()
    return Grammar("json_schema", rules_of(analysis.schema, whitespace))


def prepared_schema(source: str, backend: BackendName) -> str:
    """The schema in the words of the library.

    Raises:
        SglError: 400; a keyword would not be enforced.
    """
    analysis = analyse(source, DIALECTS[backend])
    analysis.check()
    schema = analysis.schema
    if schema is False:
        raise SglError("json_schema: no value is valid.", code="invalid_schema", param="json_schema")
    return json.dumps({} if schema is True else schema, ensure_ascii=False)


def _unanchored(pattern: str) -> str:
    """Without the ^ and $ around it: the whole output matches in any case."""
    body = pattern.removeprefix("^")
    bare = body.removesuffix("$")
    is_escaped = (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
    bare = body if is_escaped else bare
    return bare if "|" not in bare or bare == pattern else pattern


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    """The formats of a structural tag that hold a schema."""
    if isinstance(node, dict):
        if node.get("type") == "json_schema" and "json_schema" in node:
            yield node
            return
        for value in node.values():
            yield from _schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from _schemas(value)


def _literals(node: Any) -> Iterator[str]:
    """All strings of a structural tag outside its schemas."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key != "json_schema":
                yield from _literals(value)
    elif isinstance(node, list):
        for value in node:
            yield from _literals(value)
