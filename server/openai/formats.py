"""Reads what a request wants its answer to look like: `response_format` and SGLang's own fields. Compiles nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl.engine.api.limits import check_grammar
from sgl.engine.api.sampling import GRAMMAR_FIELDS, GrammarField
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.server.openai.protocol import ResponseFormat, SamplingFields

ANY_OBJECT = '{"type":"object"}'


def grammar_of(body: SamplingFields) -> Grammar | None:
    """The grammar of the answers; None where any text will do.

    Raises:
        SglError: 400; two grammars are asked for, or one that is too large or says nothing.
    """
    found = [Grammar(kind, _text(getattr(body, kind))) for kind in _own(body)]
    wanted = _wanted(body.response_format) if body.response_format is not None else None
    if wanted is not None:
        found.append(wanted)
    if len(found) > 1:
        message = "Only one of response_format, regex, json_schema, ebnf or structural_tag can be set."
        raise SglError(message, param=found[0].kind)
    for grammar in found:
        check_grammar(grammar)
    return found[0] if found else None


def names_of(body: SamplingFields) -> dict[str, str]:
    """What a request calls the grammar that its ``response_format`` makes."""
    return {} if _own(body) or body.response_format is None else dict.fromkeys(GRAMMAR_FIELDS, "response_format")


def _own(body: SamplingFields) -> list[GrammarField]:
    """SGLang's own fields that hold a grammar; an empty schema is one, an empty text is none."""
    return [kind for kind in GRAMMAR_FIELDS if getattr(body, kind) not in (None, "")]


def _wanted(form: ResponseFormat) -> Grammar | None:
    match form.type:
        case "text":
            return None
        case "json_object":
            return Grammar("json_schema", ANY_OBJECT)
        case "json_schema":
            schema = form.json_schema.schema if form.json_schema is not None else None
            if schema is None:
                message = "response_format.json_schema.schema must be there: the JSON schema of the answer."
                raise SglError(message, param="response_format.json_schema.schema")
            return Grammar("json_schema", _text(schema))
        case "structural_tag":
            return Grammar("structural_tag", _text(_tag(form)))
    message = f"response_format.type must be text, json_object, json_schema or structural_tag, got {form.type!r:.80}."
    raise SglError(message, param="response_format.type")


def _tag(form: ResponseFormat) -> dict[str, Any]:
    if form.format is not None:
        return {"type": "structural_tag", "format": form.format}
    if form.structures is None or form.triggers is None:
        message = "response_format must have a format, or structures and triggers, for its type structural_tag."
        raise SglError(message, param="response_format")
    return {"structures": form.structures, "triggers": form.triggers}


def _text(value: Any) -> str:
    """A schema or tag as JSON, as which it may have come already."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
