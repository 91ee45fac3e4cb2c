"""What a model can write under the grammars of tool calls: sampled at random, read back by the parsers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import xgrammar

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar.source import prepare
from sgl.engine.text.parsers import Message, OutputParser, collect
from sgl.engine.text.parsers.constrain import (
    Function,
    after_reasoning,
    calls_format,
    either,
    format_of,
    free_format,
    grammar_from,
    loosened,
    spoken,
)
from sgl.engine.text.parsers.formats import REASONING_FORMATS, TOOL_FORMATS, machine

FUNCTIONS = [
    Function(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Function(
        "add",
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"enum": [1, None]}}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    ),
    Function("maybe", {"type": "object", "properties": {"x": {"type": "null"}, "y": {"enum": [1]}}}),
    Function("ping", {"type": "object", "properties": {}, "additionalProperties": False}),
]
TOOLS = {function.name: dict(function.schema) for function in FUNCTIONS}
END = 0
MARKS = ("</parameter>", "</arg_value>", "</tool_call>", "</think>", "<tool_call>", "<|end|>", "</s>")
TEXTS = [*(chr(code) for code in range(32, 127)), "\n", *"é｜▁", *MARKS[:-1]]
LIKELY = {'"': 40, "]": 5, "}": 5, " ": 0.2, "\n": 0.2, **dict.fromkeys(MARKS, 40)}
WEIGHTS = np.array([LIKELY.get(text, 1) for text in ("</s>", *TEXTS)], dtype=float)
SYNTAXES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name, form in TOOL_FORMATS.items()
    for number in range(len(form.syntaxes))
]


@cache
def _compiler() -> xgrammar.GrammarCompiler:
    vocabulary = ["</s>", *TEXTS]
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[END]))


def sample(grammar: Grammar, rng: np.random.Generator, most: int = 2000) -> str:
    """A text that the grammar allows, of which it is likely that it ends soon."""
    compiled = _compiler().compile_structural_tag(prepare(grammar, "xgrammar").grammar.source)
    matcher, text = xgrammar.GrammarMatcher(compiled), ""
    mask = xgrammar.allocate_token_bitmask(1, len(TEXTS) + 1)
    for _ in range(most):
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: len(TEXTS) + 1]
        weights = WEIGHTS * bits
        token = int(rng.choice(len(weights), p=weights / weights.sum()))
        assert matcher.accept_token(token)
        if token == END:
            return text
        text += TEXTS[token - 1]
    raise AssertionError(text)


def allows(grammar: Grammar, text: str) -> bool:
    compiled = _compiler().compile_structural_tag(prepare(grammar, "xgrammar").grammar.source)
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(text) and matcher.accept_token(END)


def read(name: str, text: str, reasoning: str = "", is_open: bool | None = None) -> Message:
    form = REASONING_FORMATS.get(reasoning)
    parser = OutputParser(machine(TOOL_FORMATS[name], TOOLS, form, is_open, separate=True))
    return collect([*parser.push(text), *parser.finish()])


def check_calls(message: Message) -> None:
    for call in message.calls:
        jsonschema.validate(json.loads(call.arguments), TOOLS[call.name])


def rngs(count: int) -> Iterator[np.random.Generator]:
    return map(np.random.default_rng, range(count))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("name", "number"), SYNTAXES)
def test_forced_calls_are_read_back(name: str, number: int, parallel: bool) -> None:
    grammar = grammar_from(calls_format(TOOL_FORMATS[name].syntaxes[number][1], FUNCTIONS, parallel))
    for rng in rngs(12):
        text = sample(grammar, rng)
        message = read(name, text)
        assert message.content == "", text
        assert len(message.calls) == 1 or (parallel and len(message.calls) > 1), text
        check_calls(message)


@pytest.mark.parametrize(("name", "number"), SYNTAXES)
def test_one_function_by_name(name: str, number: int) -> None:
    grammar = grammar_from(calls_format(TOOL_FORMATS[name].syntaxes[number][1], FUNCTIONS[1:2], False))
    for rng in rngs(4):
        [call] = read(name, sample(grammar, rng)).calls
        assert call.name == "add"


@pytest.mark.parametrize(("name", "number"), SYNTAXES)
def test_calls_within_free_text(name: str, number: int) -> None:
    syntax = TOOL_FORMATS[name].syntaxes[number][1]
    grammar = grammar_from(free_format(syntax, FUNCTIONS, True))
    assert allows(grammar, "Just text [1, 2] {}.")
    only = grammar_from(calls_format(syntax, FUNCTIONS, False))
    for rng in rngs(4):
        call = sample(only, rng)
        assert allows(grammar, call)
        lead = "" if name == "gpt-oss" else "Let me see. "
        assert allows(grammar, lead + call)


@pytest.mark.parametrize(("name", "number"), SYNTAXES)
def test_a_call_of_what_is_not_on_offer_is_not_allowed(name: str, number: int) -> None:
    syntax = TOOL_FORMATS[name].syntaxes[number][1]
    other = grammar_from(calls_format(syntax, [Function("launch", FUNCTIONS[3].schema)], False))
    for rng in rngs(3):
        call = sample(other, rng)
        assert not allows(grammar_from(calls_format(syntax, FUNCTIONS, True)), call)
        assert name == "pythonic" or not allows(grammar_from(free_format(syntax, FUNCTIONS, True)), call)


REASONING = [("qwen25", "qwen3"), ("glm45", "glm45"), ("deepseekv3", "deepseek-r1"), ("gpt-oss", "gpt-oss")]


@pytest.mark.parametrize(("tools", "reasoning"), REASONING)
@pytest.mark.parametrize("is_open", [True, False, None])
def test_reasoning_stays_free(tools: str, reasoning: str, is_open: bool | None) -> None:
    form, syntax = REASONING_FORMATS[reasoning], TOOL_FORMATS[tools].syntaxes[0][1]
    forced = calls_format(syntax, FUNCTIONS[3:], False)
    grammar = grammar_from(after_reasoning(form, is_open, forced))
    call = sample(grammar_from(forced), np.random.default_rng(0))
    thought = f"{'' if is_open else form.start}1 < 2, so?{form.end}{form.joint}"
    assert allows(grammar, thought + call) is (is_open is not False)
    assert allows(grammar, call) is (is_open is False or (is_open is None and not form.assumed))
    if is_open is not False and reasoning != "gpt-oss":
        message = read(tools, thought + call, reasoning, is_open)
        assert (message.reasoning, message.content, len(message.calls)) == ("1 < 2, so?", "", 1)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar("json_schema", '{"type": "integer"}'), "12"),
        (Grammar("regex", "(Paris|Rome)"), "Paris"),
        (Grammar("ebnf", 'root ::= "a" | "b"'), "b"),
        (Grammar("structural_tag", json.dumps({"format": {"type": "const_string", "value": "x"}})), "x"),
        (
            Grammar(
                "structural_tag",
                json.dumps({"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}),
            ),
            "b <a>1</a> c",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
def test_other_grammars_behind_reasoning_and_beside_calls(grammar: Grammar, text: str) -> None:
    form = REASONING_FORMATS["qwen3"]
    behind = grammar_from(after_reasoning(form, True, format_of(grammar)))
    assert allows(behind, f"Hm.</think>\n\n{text}") and not allows(behind, "Hm.</think>\n\n<a>?")
    calls = calls_format(TOOL_FORMATS["hermes"].syntaxes[0][1], FUNCTIONS, True)
    beside = grammar_from(either([calls, format_of(grammar)]))
    assert allows(beside, text)
    assert allows(beside, '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>')
    final = grammar_from(spoken(REASONING_FORMATS["gpt-oss"], format_of(grammar)))
    assert allows(final, f"<|channel|>final<|message|>{text}")


def test_functions_that_are_not_strict_keep_names_and_types_only() -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "x", "format": "y"}, "b": {"anyOf": []}}, "not": {}}
    properties: dict[str, Any] = {"a": {"type": "string"}, "b": {}}
    assert loosened(schema) == {"type": "object", "properties": properties, "additionalProperties": True}


def test_python_needs_to_know_the_properties() -> None:
    syntax = TOOL_FORMATS["pythonic"].syntaxes[0][1]
    with pytest.raises(SglError, match="properties"):
        calls_format(syntax, [Function("f", {"$ref": "#/$defs/x"})], True)


MODELS = {
    "llama": "llama3",
    "kimi": "kimi_k2",
    "deepseek_r1": "deepseekv3",
    "deepseek_v3_1": "deepseekv3",
    "qwen_3_5": "qwen3_coder",
    "qwen_3": "qwen25",
    "glm_4_7": "glm45",
    "harmony": "gpt-oss",
}


def _offered(functions: Sequence[Function]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f.name, "parameters": f.schema}} for f in functions]


@pytest.mark.parametrize("model", MODELS)
def test_what_xgrammar_knows_of_the_formats(model: str) -> None:
    """xgrammar describes the formats of well-known models, too: what it lets them write is read."""
    tag = xgrammar.get_model_structural_tag(model, _offered(FUNCTIONS), "required", reasoning="disabled")
    compiled = Grammar("structural_tag", tag.model_dump_json())
    for rng in rngs(8):
        text = sample(compiled, rng)
        message = read(MODELS[model], text)
        assert message.calls or not text
        check_calls(message)


@pytest.mark.parametrize(
    ("kind", "source", "word"),
    [
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "[" * 100_000, "not valid JSON"),
        ("structural_tag", "nothing", "not valid JSON"),
        ("structural_tag", "[]", "must be an object"),
        ("structural_tag", "7", "must be an object"),
        ("structural_tag", "{}", "must be an object"),
        ("structural_tag", '{"triggers": [], "structures": [{}]}', "must be an object"),
        ("structural_tag", '{"triggers": [], "structures": 7}', "must be an object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_grammar_that_is_none_is_refused_in_a_sentence(kind: Any, source: str, word: str) -> None:
    with pytest.raises(SglError, match=word) as error:
        format_of(Grammar(kind, source))
    assert (error.value.status, error.value.param) == (400, kind)
