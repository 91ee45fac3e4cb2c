"""What each library really does with each keyword, against jsonschema: the source of keywords.py."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from sgl.engine.base.errors import SglError
from sgl.engine.grammar.backend import BackendName
from sgl.engine.grammar.keywords import DIALECTS
from sgl.engine.grammar.schema import analyse
from tests.grammar.harness import BACKENDS, accepts, compiled

Case = tuple[str, Any, list[str], list[str]]

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def string(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


def integer(**keywords: Any) -> dict[str, Any]:
    return {"type": "integer", **keywords}


def number(**keywords: Any) -> dict[str, Any]:
    return {"type": "number", **keywords}


def array(**keywords: Any) -> dict[str, Any]:
    return {"type": "array", **keywords}


def thing(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


LIST = {"$defs": {"n": closed(next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]})}, "$ref": "#/$defs/n"}
PAIR = {"a": INTEGER, "b": INTEGER}

CASES: list[Case] = [
    ("minLength", string(minLength=2), ['"ab"', '"éé"'], ['"a"', '""', '"é"']),
    ("maxLength", string(maxLength=2), ['"ab"', '""', '"éé"'], ['"abc"']),
    ("maxLength-astral", string(maxLength=1), ['"😀"'], ['"😀😀"']),
    ("pattern", string(pattern="^[a-z]+$"), ['"ab"'], ['"a1"', '""']),
    ("pattern-search", string(pattern="b"), ['"abc"', '"b"'], ['"ac"']),
    ("pattern-begin", string(pattern="^b"), ['"bc"', '"b"'], ['"ab"']),
    ("pattern-word", string(pattern="^\\w+$"), ['"a_1"'], ['"a b"', '""']),
    ("pattern-length", string(pattern="^[a-z]+$", maxLength=2), ['"ab"'], ['"abc"']),
    ("pattern-ahead", string(pattern="^(?=a)ab$"), ['"ab"'], ['"abc"', '"bb"']),
    ("pattern-back", string(pattern="^(a|b)\\1$"), ['"aa"'], ['"ab"']),
    ("pattern-quote", string(pattern='^"$'), ['"\\""'], ['"a"', '"""']),
    ("pattern-range", string(pattern="^[!-~]$"), ['"a"', '"\\""'], ['"ab"', '"""', '"\\"']),
    ("pattern-dot", string(pattern="^.$"), ['"a"'], ['"ab"', '"""', '"\\"']),
    ("pattern-negated", string(pattern="^[^a]$"), ['"b"'], ['"a"', '"""', '"\\"']),
    ("pattern-choice", string(pattern="^(ab|cd){1,2}$"), ['"ab"', '"cdab"'], ['"a"', '"ababab"']),
    ("minimum", integer(minimum=3), ["3", "12"], ["2", "-5"]),
    ("maximum", integer(maximum=13), ["3", "13", "-100"], ["14", "100"]),
    ("range", integer(minimum=-5, maximum=13), ["-5", "13", "0"], ["14", "-6"]),
    ("exclusiveMinimum", integer(exclusiveMinimum=3), ["4"], ["3"]),
    ("exclusiveMaximum", integer(exclusiveMaximum=3), ["2"], ["3"]),
    ("minimum-number", number(minimum=1.5), ["1.5", "2", "1.75"], ["1.25", "1"]),
    ("maximum-number", number(maximum=1.5), ["1.5", "-2", "1.25"], ["1.75", "2"]),
    ("exclusiveMinimum-number", number(exclusiveMinimum=1.5), ["1.75", "2"], ["1.5", "1"]),
    ("exclusiveMaximum-number", number(exclusiveMaximum=1.5), ["1.25", "1"], ["1.5", "2"]),
    ("number", number(), ["1", "-5"], ["1.", ".5", "01", "+1", "NaN"]),
    ("integer", INTEGER, ["0", "-7", "10"], ["1.5", "-", "00", "01"]),
    ("multipleOf", integer(multipleOf=3), ["3", "12", "0"], ["4", "13"]),
    ("multipleOf-number", number(multipleOf=0.5), ["1.5", "2"], ["1.25"]),
    ("enum", {"enum": ["a", 1, None, True, [1, 2]]}, ['"a"', "1", "null", "true"], ['"b"', "2", "false"]),
    ("const", {"const": "x"}, ['"x"'], ['"y"', "1"]),
    ("const-quote", {"const": 'x"y'}, ['"x\\"y"'], ['"x"']),
    ("enum-type", {"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ("enum-neighbour", string(enum=["a", "abc"], maxLength=2), ['"a"'], ['"abc"']),
    ("type-list", {"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    ("type-list-keyword", {"type": ["string", "integer"], "minLength": 2, "minimum": 5}, ['"ab"', "5"], ['"a"', "4"]),
    ("no-type", {"minimum": 5}, ["5", '"a"'], ["4"]),
    ("items", array(items=INTEGER), ["[]", "[1]", "[1, 2]"], ['["a"]', '[1, "a"]']),
    ("minItems", array(items=INTEGER, minItems=2), ["[1, 2]", "[1, 2, 3]"], ["[1]", "[]"]),
    ("maxItems", array(items=INTEGER, maxItems=2), ["[1, 2]", "[]"], ["[1, 2, 3]"]),
    ("maxItems-0", array(items=INTEGER, maxItems=0), ["[]"], ["[1]"]),
    ("uniqueItems", array(items=INTEGER, uniqueItems=True), ["[1, 2]"], ["[1, 1]"]),
    ("uniqueItems-no", array(items=INTEGER, uniqueItems=False), ["[1, 1]"], []),
    ("contains", array(contains=INTEGER), ["[1]"], ['["a"]', "[]"]),
    (
        "prefixItems",
        array(prefixItems=[INTEGER, STRING], items=False, minItems=2),
        ['[1, "a"]'],
        ['[1, "a", 2]', "[1]"],
    ),
    ("prefixItems-rest", array(prefixItems=[INTEGER], items=STRING), ['[1, "a"]', "[1]"], ["[1, 2]"]),
    ("unevaluatedItems", array(prefixItems=[INTEGER], unevaluatedItems=False), ["[1]"], ["[1, 2]"]),
    ("properties", thing(properties={"a": INTEGER, "b": STRING}), ["{}", '{"a": 1}', '{"b": "x"}'], ['{"a": "x"}']),
    ("properties-order", closed(a=INTEGER, b=STRING), ['{"a": 1, "b": "x"}', '{"b": "x", "a": 1}'], []),
    ("properties-again", thing(properties={"a": INTEGER}, required=["a"]), ['{"a": 1}'], ['{"a": 1, "a": "x"}']),
    ("required", thing(properties=PAIR, required=["b"], additionalProperties=False), ['{"b": 1}'], ["{}", '{"a": 1}']),
    ("required-undeclared", thing(properties={"a": INTEGER}, required=["z"]), ['{"z": 1}'], ["{}", '{"a": 1}']),
    ("additionalProperties-no", thing(properties={"a": INTEGER}, additionalProperties=False), ["{}"], ['{"b": 1}']),
    ("additionalProperties", thing(properties={"a": INTEGER}, additionalProperties=STRING), ['{"a": 1}'], ['{"b": 1}']),
    ("additionalProperties-only", thing(additionalProperties=INTEGER), ['{"x": 1}', "{}"], ['{"x": "a"}']),
    (
        "patternProperties",
        thing(patternProperties={"^x": INTEGER}, additionalProperties=False),
        ['{"x1": 1}'],
        ['{"y": 1}'],
    ),
    (
        "patternProperties-both",
        thing(properties={"xa": INTEGER}, patternProperties={"^x": integer(minimum=5)}),
        [],
        ['{"xa": 1}'],
    ),
    ("propertyNames", thing(propertyNames={"type": "string", "maxLength": 1}), ['{"a": 1}'], ['{"ab": 1}']),
    ("minProperties", thing(additionalProperties=INTEGER, minProperties=1), ['{"a": 1}'], ["{}"]),
    ("maxProperties", thing(additionalProperties=INTEGER, maxProperties=1), ['{"a": 1}', "{}"], ['{"a": 1, "b": 1}']),
    ("dependentRequired", thing(properties=PAIR, dependentRequired={"a": ["b"]}), ['{"b": 1}'], ['{"a": 1}']),
    (
        "unevaluatedProperties",
        thing(properties={"a": INTEGER}, unevaluatedProperties=False),
        ['{"a": 1}'],
        ['{"b": 1}'],
    ),
    ("anyOf", {"anyOf": [INTEGER, STRING]}, ["1", '"a"'], ["null"]),
    ("anyOf-neighbour", string(anyOf=[{"minLength": 3}, {"maxLength": 1}]), ['"abc"', '"a"'], ['"ab"']),
    ("oneOf", {"oneOf": [INTEGER, STRING]}, ["1", '"a"'], ["null"]),
    ("oneOf-overlap", {"oneOf": [INTEGER, {"type": "number"}]}, ["1.5"], ["1"]),
    ("oneOf-const", {"oneOf": [{"const": 1}, {"const": 2}]}, ["1", "2"], ["3"]),
    (
        "oneOf-discriminator",
        {"oneOf": [closed(k={"const": "a"}, v=INTEGER), closed(k={"const": "b"}, v=STRING)]},
        ['{"k": "a", "v": 1}', '{"k": "b", "v": "x"}'],
        ['{"k": "a", "v": "x"}'],
    ),
    ("allOf-1", {"allOf": [INTEGER]}, ["1"], ['"a"']),
    ("allOf-2", {"allOf": [integer(minimum=3), {"maximum": 5}]}, ["4"], ["2", "6"]),
    ("not", integer(**{"not": {"const": 3}}), ["4"], ["3"]),
    ("if", thing(**{"if": {"required": ["a"]}, "then": {"required": ["b"]}}), ["{}"], ['{"a": 1}']),
    ("$ref", {"$ref": "#/$defs/x", "$defs": {"x": INTEGER}}, ["1"], ['"a"']),
    ("$ref-definitions", {"$ref": "#/definitions/x", "definitions": {"x": INTEGER}}, ["1"], ['"a"']),
    ("$ref-anywhere", closed(a=INTEGER, b={"$ref": "#/properties/a"}), ['{"a": 1, "b": 2}'], ['{"a": 1, "b": "x"}']),
    ("$ref-escaped", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}}, ["1"], ['"a"']),
    ("$ref-neighbour", {"$ref": "#/$defs/x", "minimum": 5, "$defs": {"x": INTEGER}}, ["6"], ["1"]),
    ("$ref-recursive", LIST, ['{"next": null}', '{"next": {"next": null}}'], ['{"next": 1}']),
    ("$anchor", {"$ref": "#foo", "$defs": {"x": {"$anchor": "foo", "type": "integer"}}}, ["1"], ['"a"']),
    ("annotations", integer(title="x", description="y", default=1, examples=[1], deprecated=True), ["1"], ['"a"']),
    ("contentEncoding", string(contentEncoding="base64"), ['"YQ=="'], []),
    ("nothing", {}, ["1", '"a"', "null"], []),
    ("string", STRING, ['"a\\tb"', '"😀"', '"\\""'], ['"a\tb"', '"\x01"', '"\\x"']),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_keyword_is_kept_or_refused(case: Case, backend: BackendName) -> None:
    _, schema, valid, invalid = case
    _expect_jsonschema_agrees(schema, valid, invalid)
    analysis = analyse(json.dumps(schema), DIALECTS[backend])
    refused = [finding for finding in analysis.findings if finding.status == "unsupported"]
    if refused:
        with pytest.raises(SglError) as error:
            compiled(backend, "json_schema", json.dumps(schema))
        assert refused[0].pointer in error.value.message and refused[0].keyword in error.value.message
        return
    try:
        grammar = compiled(backend, "json_schema", json.dumps(schema))
    except SglError as error:
        assert backend == "native" and (error.status, error.code) == (400, "unsupported_schema"), "it knows no mixtures"
        return
    for text in invalid:
        assert not accepts(backend, grammar, list(text.encode())), f"{text} is not valid"
    if all(finding.status == "enforced" for finding in analysis.findings):
        for text in valid:
            assert accepts(backend, grammar, list(text.encode())), f"{text} is valid"


def _expect_jsonschema_agrees(schema: Any, valid: list[str], invalid: list[str]) -> None:
    """The case itself, by an independent implementation; what is no JSON, or repeats a key, is invalid anyway."""
    validator = jsonschema.Draft202012Validator(schema)
    assert all(validator.is_valid(json.loads(text)) for text in valid)
    for text in invalid:
        try:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        except ValueError:
            continue
        assert not validator.is_valid(value), text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError
    return dict(pairs)


def _refuse(name: str) -> None:
    raise ValueError


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("date", ["2024-02-29", "1999-12-31"], ["x", "2024-13-01"]),
        ("date-time", ["2024-02-29T10:00:00Z"], ["x", "2024-02-29", "2024-02-29T25:00:00Z"]),
        ("time", ["10:00:00Z"], ["x", "25:00:00Z"]),
        ("duration", ["P1D"], ["x"]),
        ("email", ["a@b.co"], ["x"]),
        ("hostname", ["a.b"], ["-", "a b"]),
        ("ipv4", ["1.2.3.4"], ["1.2.3.400"]),
        ("ipv6", ["::1"], ["x"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["x"]),
        ("uri", ["http://a/b"], ["a b"]),
        ("regex", ["a"], ["("]),
        ("made-up", ["a"], []),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_format_is_kept_or_refused(name: str, valid: list[str], invalid: list[str], backend: BackendName) -> None:
    source, dialect = json.dumps(string(format=name)), DIALECTS[backend]
    if name not in dialect.formats and name not in dialect.approximated_formats:
        with pytest.raises(SglError, match="#/format"):
            compiled(backend, "json_schema", source)
        return
    grammar = compiled(backend, "json_schema", source)
    assert not any(accepts(backend, grammar, list(f'"{text}"'.encode())) for text in invalid)
    assert all(accepts(backend, grammar, list(f'"{text}"'.encode())) for text in valid)
