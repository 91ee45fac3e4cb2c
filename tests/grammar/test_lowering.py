"""JSON schemas as rules: numbers and names against direct comparison, and what must be refused in a sentence."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import product
from typing import Any

import jsonschema
import pytest

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar import worker
from sgl.engine.grammar.backend import Options
from sgl.engine.grammar.limits import Limits
from sgl.engine.grammar.lowering import MAX_CHARS, _other_than, rules_of
from sgl.engine.grammar.numbers import integers_between, numbers_between
from sgl.engine.grammar.process import CompilerProcess
from sgl.engine.grammar.protocol import Load, Lower, Refused, decode_reply, frame_of
from sgl.engine.grammar.source import check_at_a_glance, lowered
from sgl.engine.grammar.vocabulary import BYTES
from tests.grammar.harness import accepts, compiled, needs_compiler


@pytest.fixture(scope="module")
def process() -> Iterator[CompilerProcess]:
    process = CompilerProcess("native", BYTES, Options(), Limits(compile_s=60.0))
    yield process
    process.kill()


def refusal(source: str) -> SglError:
    with pytest.raises(SglError) as error:
        lowered(Grammar("json_schema", source), None)
    assert error.value.status == 400
    return error.value


# ---- numbers ---------------------------------------------------------------------------------------------------------


def bounds(rng: random.Random, draw: Any) -> dict[str, Any]:
    """One to four of them, mostly near each other."""
    schema = {}
    for names in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        for name in rng.sample(names, rng.choice([0, 1, 1, 1, 2])):
            schema[name] = draw()
    return schema or {"minimum": draw()}


def is_between(value: Decimal, schema: dict[str, Any]) -> bool:
    limits = {name: Decimal(str(bound)) for name, bound in schema.items()}
    return (
        value >= limits.get("minimum", value)
        and value <= limits.get("maximum", value)
        and ("exclusiveMinimum" not in limits or value > limits["exclusiveMinimum"])
        and ("exclusiveMaximum" not in limits or value < limits["exclusiveMaximum"])
    )


def matches(between: Any, schema: dict[str, Any], texts: list[str]) -> list[bool]:
    try:
        pattern = re.compile(between(schema))
    except SglError as error:
        assert (error.status, error.code) == (400, "unsupported_schema")
        return [False] * len(texts)
    return [pattern.fullmatch(text) is not None for text in texts]


@pytest.mark.parametrize("reach", [12, 1200, 10**7, 2**63 - 1])
def test_integers_are_those_between_the_bounds(reach: int) -> None:
    rng = random.Random(reach)
    for _ in range(60):
        schema = bounds(rng, lambda: rng.randint(-reach, reach))
        near = [bound + step for bound in schema.values() for step in (-10, -2, -1, 0, 1, 2, 9, 10)]
        values = [*near, *(rng.randint(-2 * reach, 2 * reach) for _ in range(20)), 0, 10**25, -(10**25)]
        found = matches(integers_between, schema, [str(value) for value in values])
        assert found == [is_between(Decimal(value), schema) for value in values], schema


@pytest.mark.parametrize("schema", [{"minimum": 1.5}, {"exclusiveMaximum": 2.0}, {"minimum": -0.5, "maximum": 1e3}])
def test_bounds_of_integers_need_not_be_whole(schema: dict[str, Any]) -> None:
    values = range(-1100, 1100)
    found = matches(integers_between, schema, [str(value) for value in values])
    assert found == [is_between(Decimal(value), schema) for value in values]


@pytest.mark.parametrize("places", [0, 1, 3, 6])
def test_numbers_are_those_between_the_bounds(places: int) -> None:
    rng = random.Random(places)
    for _ in range(60):
        reach = rng.choice([1, 30, 5000])
        schema = bounds(rng, lambda: round(rng.uniform(-reach, reach), places))  # noqa: B023
        step = Decimal(10) ** -(places + 1)
        near = [
            Decimal(str(bound)) + way * size * step
            for bound in schema.values()
            for way in (-1, 1)
            for size in (0, 1, 5, 10)
        ]
        others = [round(Decimal(rng.uniform(-2 * reach, 2 * reach)), rng.randint(0, 7)) for _ in range(20)]
        values = [value for value in [*near, *others] if value]  # 0 is also -0.0, and not all of its forms are written
        texts = [f"{value:f}" for value in values]
        texts += [f"{text}00" if "." in text else f"{text}.0" for text in texts]
        expected = [is_between(Decimal(text), schema) for text in texts]
        assert matches(numbers_between, schema, texts) == expected, schema


@pytest.mark.parametrize("between", [integers_between, numbers_between])
def test_what_is_no_number_of_json_never_matches(between: Any) -> None:
    rng = random.Random(1)
    for _ in range(40):
        schema = bounds(rng, lambda: rng.randint(-50, 50))
        assert not any(matches(between, schema, ["", "-", "01", "+1", "1.", ".5", "1e2", "--1", "1.5.5", " 1", "٣"]))


# ---- strings and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "most"), [(5, 0), (1, 0), (3, 2)])
def test_no_string_is_shorter_than_short(least: int, most: int) -> None:
    error = refusal(json.dumps({"type": "string", "minLength": least, "maxLength": most}))
    assert error.code == "unsupported_schema" and "no number of characters" in error.message


@needs_compiler
@pytest.mark.parametrize("pattern", ["^a\n$", "^a\\\n$", "^a\\\\\n$", "^a\\\\\\\n$", "^[\n]$", "^[\\\n]$"])
def test_a_line_break_in_a_pattern_is_one(pattern: str) -> None:
    grammar = compiled("native", "json_schema", json.dumps({"type": "string", "pattern": pattern}))
    texts = ["".join(chars) for size in range(4) for chars in product("a\\n\n", repeat=size)]
    for text in texts:
        fits = re.search(pattern.removesuffix("$") + r"\Z", text) is not None
        assert accepts("native", grammar, list(json.dumps(text).encode())) == fits, (pattern, text)


def test_other_names_are_all_but_the_declared_ones() -> None:
    rng = random.Random(2)
    words = ["".join(chars) for size in range(5) for chars in product("ab-", repeat=size)]
    for _ in range(60):
        names = rng.sample(words, rng.randint(1, 12))
        pattern = re.compile(_other_than(names))
        assert [word for word in words if not pattern.fullmatch(word)] == sorted(set(names), key=words.index)


@needs_compiler
def test_long_names_are_written_up_to_a_length() -> None:
    def schema(size: int) -> str:
        return json.dumps({"type": "object", "properties": {"a" * size: {"type": "null"}}})

    grammar = compiled("native", "json_schema", schema(256))
    for name, value, fits in (("a" * 256, "null", True), ("a" * 256, "1", False), ("a" * 255, "1", True)):
        assert accepts("native", grammar, list(f'{{"{name}": {value}}}'.encode())) == fits
    for size in (257, 1200, 100_000):
        error = refusal(schema(size))
        assert error.code == "unsupported_schema" and "256 characters" in error.message and len(error.message) < 300


@needs_compiler
def test_first_items_come_in_order_and_in_number() -> None:
    rng = random.Random(4)
    kinds = [{"type": "null"}, {"enum": [1, 2]}, {"type": "boolean"}]
    for _ in range(40):
        schema: dict[str, Any] = {"type": "array", "prefixItems": rng.choices(kinds, k=rng.randint(1, 3))}
        schema["items"] = rng.choice([False, {"enum": [1, 2]}])
        schema |= {"minItems": rng.randint(0, 3)} if rng.random() < 0.6 else {}
        schema |= {"maxItems": rng.randint(0, 4)} if rng.random() < 0.6 else {}
        validator = jsonschema.Draft202012Validator(schema)
        values = [rng.choices([None, 1, True], k=rng.randint(0, 5)) for _ in range(15)]
        try:
            grammar = compiled("native", "json_schema", json.dumps(schema))
        except SglError as error:
            assert "no number of items" in error.message or "no finite value" in error.message
            assert not any(map(validator.is_valid, values))
            continue
        for value in values:
            taken = accepts("native", grammar, list(json.dumps(value).encode()))
            assert taken == validator.is_valid(value), (schema, value)


# ---- what nobody can write -------------------------------------------------------------------------------------------

CHAIN = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(900)} | {"900": {"type": "null"}}
HUGE = "1" + "0" * 400

UNWRITABLE = [
    ('{"const": NaN}', "#/const"),
    ('{"const": -Infinity}', "#/const"),
    ('{"const": {"a": [1e999]}}', "#/const/a/0"),
    ('{"enum": ["a", -1e999]}', "#/enum/1"),
    (f'{{"enum": [{HUGE}], "type": "integer"}}', "#/enum/0"),
    (f'{{"properties": {{"a/b": {{"const": {HUGE}}}}}}}', "#/properties/a~1b/const"),
    ('{"type": "number", "minimum": NaN}', "#/minimum"),
    (f'{{"const": {"1" * 5000}}}', "digits"),
    ('{"const": "\\ud800"}', "#/const"),
    ('{"enum": [{"\\udfff": 1}]}', "#/enum/0"),
    ('{"type": "object", "properties": {"\\ud800": {}}}', "#/properties"),
    ('{"type": "object", "required": ["\\ud800"]}', "#/required/0"),
    ('{"\\ud800": 1}', "# has a name"),
    (f'{{"const": {"[" * 300}{"]" * 300}}}', "256 deep"),
    ("[" * 100_000, "too deep"),
    (json.dumps({"$ref": "#/$defs/0", "$defs": CHAIN}), "too"),
]


@pytest.mark.parametrize(("source", "word"), UNWRITABLE, ids=[source[:24] for source, _ in UNWRITABLE])
def test_what_no_output_can_be_is_refused(source: str, word: str, process: CompilerProcess) -> None:
    error = refusal(source)
    assert word in error.message and error.param == "json_schema"
    assert error.message.encode() and "\n" not in error.message and len(error.message) < 500
    process.lower(Grammar("json_schema", "true"))
    before = process._process
    with pytest.raises(SglError, match=re.escape(word)) as refused:
        process.lower(Grammar("json_schema", source))
    assert refused.value.status == 400
    process.lower(Grammar("json_schema", "true"))
    assert process._process is before, "the process lives on"


@pytest.mark.parametrize(
    "outcome",
    [
        Grammar("json_schema", "\ud800"),
        SglError("\ud800 is wrong."),
        *(OverflowError("too large"), ValueError("\ud800"), RecursionError(), MemoryError()),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_what_a_library_does_not_foresee_is_an_answer(outcome: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(grammar: Grammar, whitespace: str | None) -> Grammar:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    monkeypatch.setattr(worker, "lowered", lower)
    compiler = worker.Worker()
    compiler._load = Load("native", (), {}, None, 0)
    frame = frame_of(Lower(Grammar("json_schema", "true")))
    reply = decode_reply(compiler.reply(frame[4:])[4:])
    assert isinstance(reply, Refused) and reply.status == 400 and reply.message.endswith(".")


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(SglError, match="position 1") as error:
        check_at_a_glance(Grammar("regex", "a\ud800"))
    assert error.value.status == 400


# ---- sizes -----------------------------------------------------------------------------------------------------------

WIDE = {"type": "integer", "minimum": -1234567890123456789, "maximum": 8765432109876543210}
LONG = [
    {"anyOf": [WIDE] * 3000},
    {"type": "object", "properties": {f"p{i}": WIDE for i in range(2500)}, "additionalProperties": False},
    {"type": "array", "prefixItems": [WIDE] * 2500},
    {"type": "array", "prefixItems": [{"type": "array", "prefixItems": [WIDE] * 100}] * 20},
    {"enum": ["-" * 199_000]},
]


@pytest.mark.parametrize("schema", LONG, ids=lambda schema: "-".join(schema))
def test_rules_of_any_schema_are_short(schema: Any) -> None:
    error = refusal(json.dumps(schema))
    assert error.code == "unsupported_schema" and str(MAX_CHARS) in error.message


@pytest.mark.parametrize("least", [0, 4000, 8000])
def test_thousands_of_items_are_written_once_each(least: int) -> None:
    text = rules_of({"type": "array", "prefixItems": [{"type": "null"}] * 8000, "minItems": least, "items": False})
    assert text.count("null") == 8000 and len(text) < 24 * 8000
