"""Turns formats of calls and reasoning into grammars, so that a model can write nothing but what they can be read from.

The grammars are xgrammar's structural tags, as plain data; this module compiles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.text.parsers.markedforms import DEEPSEEK, FENCE, FENCE_END, KIMI, Marks
from sgl.engine.text.parsers.reasoning import ReasoningFormat

Format = dict[str, Any]
_ANY_TEXT: Format = {"type": "any_text"}
_BREAKS: Format = {"type": "regex", "pattern": r"\n{0,2}"}


@dataclass(frozen=True)
class CallSyntax:
    """How one call is written.

    Args:
        begin: what stands before the arguments, by name; ``NAME`` in it is the function's.
        end: what stands behind them.
        arguments: the format of arguments of a schema.
        separator: between two calls.
        section: what stands around all calls.
        trigger: what in free text begins a call, or the section; where it is empty, the section with the first call.
        once: whether an answer has one call at most, whatever is asked for.
    """

    begin: str
    end: str
    trigger: str
    separator: str = ""
    section: tuple[str, str] | None = None
    arguments: Callable[[Mapping[str, Any]], Format] = lambda schema: _json(schema)
    once: bool = False


@dataclass(frozen=True)
class Function:
    """A function that may be called, and the schema that its arguments must follow."""

    name: str
    schema: Mapping[str, Any]


def calls_format(syntax: CallSyntax, functions: Sequence[Function], parallel: bool) -> Format:
    """At least one call and nothing else."""
    calls = {
        "type": "tags_with_separator",
        "tags": [_tag(syntax, function) for function in functions],
        "separator": syntax.separator,
        "at_least_one": True,
        "stop_after_first": syntax.once or not parallel,
    }
    return _in_section(syntax, calls)


def free_format(syntax: CallSyntax, functions: Sequence[Function], parallel: bool) -> Format:
    """Text, in which calls may begin; each that does must be whole."""
    triggers, tags = [syntax.trigger], [_tag(syntax, function) for function in functions]
    if syntax.section and not syntax.trigger:
        tags = [_opening(syntax, tag, tags if parallel else []) for tag in tags]
        triggers = [tag["begin"] for tag in tags]
    elif syntax.section:
        tags = [calls_format(syntax, functions, parallel)]
    return {
        "type": "triggered_tags",
        "triggers": triggers,
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": syntax.once or syntax.section is not None or not parallel,
    }


def _opening(syntax: CallSyntax, first: Format, further: Sequence[Format]) -> Format:
    """A section that begins with a certain call."""
    assert syntax.section is not None
    begin, end = syntax.section
    elements = [first["content"], _const(first["end"])]
    if further:
        tags = [{**tag, "begin": syntax.separator + tag["begin"]} for tag in further]
        elements.append({"type": "tags_with_separator", "tags": tags, "separator": "", "at_least_one": False})
    content = {"type": "sequence", "elements": elements}
    return {"type": "tag", "begin": begin + first["begin"], "content": content, "end": end}


def either(formats: Sequence[Format]) -> Format:
    """One of several formats."""
    return {"type": "or", "elements": list(formats)}


def after_reasoning(form: ReasoningFormat, is_open: bool | None, body: Format) -> Format:
    """A format behind the reasoning that the prompt leaves open, or that the model may begin itself.

    Args:
        is_open: see `ReasoningFormat.is_open`.
    """
    if is_open is False:
        return body
    started = is_open or (is_open is None and form.assumed)
    thought = {"type": "tag", "begin": "" if is_open else form.start, "content": _ANY_TEXT, "end": form.end}
    between = _const(form.joint) if form.joint else _BREAKS
    sequence = {"type": "sequence", "elements": [thought, between, body]}
    return sequence if started else either([sequence, body])


def spoken(form: ReasoningFormat | None, body: Format) -> Format:
    """Content of a format, with what stands before it."""
    return {"type": "sequence", "elements": [_const(form.answer), body]} if form and form.answer else body


def format_of(grammar: Grammar) -> Format:
    """Another grammar as a format.

    Raises:
        SglError: 400; it is not what its kind promises.
    """
    match grammar.kind:
        case "json_schema":
            return _json(_parsed(grammar))
        case "regex":
            return {"type": "regex", "pattern": grammar.source}
        case "ebnf":
            return {"type": "grammar", "grammar": grammar.source}
    tag = _parsed(grammar)
    try:
        return tag["format"] if "format" in tag else _from_structures(tag)
    except (KeyError, TypeError, AttributeError):
        message = "structural_tag must be an object with a format, or with structures and triggers."
        raise SglError(message, code="invalid_structural_tag", param=grammar.kind) from None


def _parsed(grammar: Grammar) -> Any:
    try:
        return json.loads(grammar.source)
    except (ValueError, RecursionError) as error:
        message = f"{grammar.kind} is not valid JSON: {error}."
        raise SglError(message, code="invalid_grammar", param=grammar.kind) from None


def grammar_from(body: Format) -> Grammar:
    """The grammar of a format."""
    return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": body}, ensure_ascii=False))


def loosened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object as far as its names and types go, for functions that are not strict."""
    properties = schema.get("properties")
    kept = {
        name: {"type": value["type"]} if isinstance(value, dict) and isinstance(value.get("type"), str) else {}
        for name, value in (properties if isinstance(properties, dict) else {}).items()
    }
    return {"type": "object", "properties": kept, "additionalProperties": True}


def _tag(syntax: CallSyntax, function: Function) -> Format:
    return {
        "type": "tag",
        "begin": syntax.begin.replace("NAME", function.name),
        "content": syntax.arguments(function.schema),
        "end": syntax.end,
    }


def _in_section(syntax: CallSyntax, calls: Format) -> Format:
    if syntax.section is None:
        return calls
    return {"type": "tag", "begin": syntax.section[0], "content": calls, "end": syntax.section[1]}


def _from_structures(tag: Mapping[str, Any]) -> Format:
    """SGLang's older form of structural tags."""
    tags = [
        {
            "type": "tag",
            "begin": structure["begin"],
            "content": _json(structure.get("schema", {})),
            "end": structure["end"],
        }
        for structure in tag["structures"]
    ]
    return {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}


def _kimi_arguments(schema: Mapping[str, Any]) -> Format:
    index = {"type": "regex", "pattern": "[0-9]+"}
    return {"type": "sequence", "elements": [index, _const(KIMI.arguments), _json(schema)]}


def _xml_arguments(body: Format) -> Format:
    """Elements on lines of their own; nothing for a function without parameters."""
    properties = body["json_schema"].get("properties")
    return {"type": "sequence", "elements": [_const("\n"), body]} if properties != {} else _const("")


def _pythonic_arguments(schema: Mapping[str, Any]) -> Format:
    """``name=value`` with the values in JSON, those that are required first, in the order of the schema."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or any(key in schema for key in ("$ref", "anyOf", "oneOf", "allOf")):
        message = "A call in the pythonic format can be forced only where `parameters` list all their `properties`."
        raise SglError(message, code="unsupported_schema", param="tools")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = [name for name in properties if name in schema.get("required", ())]
    optional = [name for name in properties if name not in required]

    def argument(name: str, prefix: str) -> Format:
        value = properties[name]
        own = {**value, **shared} if isinstance(value, dict) else value
        return {"type": "sequence", "elements": [_const(f"{prefix}{name}="), _json(own)]}

    def some(names: Sequence[str]) -> list[Format]:
        return [either([_const(""), argument(name, ", ")]) for name in names]

    if required:
        given = [argument(name, ", " if position else "") for position, name in enumerate(required)]
        return {"type": "sequence", "elements": [*given, *some(optional)]}
    firsts = [
        {"type": "sequence", "elements": [argument(name, ""), *some(optional[position + 1 :])]}
        for position, name in enumerate(optional)
    ]
    return either([_const(""), *firsts])


def _const(text: str) -> Format:
    return {"type": "const_string", "value": text}


def _json(schema: Any) -> Format:
    return {"type": "json_schema", "json_schema": schema}


def _section(marks: Marks) -> tuple[str, str]:
    return marks.section, marks.section_end


def _json_call(keyword: str) -> str:
    return '{"name": "NAME", "' + keyword + '": '


HERMES = CallSyntax("<tool_call>\n" + _json_call("arguments"), "}\n</tool_call>", trigger="<tool_call>", separator="\n")
LLAMA3 = CallSyntax(_json_call("parameters"), "}", trigger='{"name": "', separator="; ")
MISTRAL = CallSyntax(
    _json_call("arguments"), "}", trigger="[TOOL_CALLS]", separator=", ", section=("[TOOL_CALLS] [", "]")
)
MISTRAL_NAMED = CallSyntax("[TOOL_CALLS]NAME[ARGS]", "", trigger="[TOOL_CALLS]")
DEEPSEEK_FENCED = CallSyntax(
    f"{DEEPSEEK.call}function{DEEPSEEK.arguments}NAME\n{FENCE}\n",
    f"\n{FENCE_END}{DEEPSEEK.call_end}",
    trigger=DEEPSEEK.section,
    separator="\n",
    section=_section(DEEPSEEK),
)
DEEPSEEK_BARE = CallSyntax(
    f"{DEEPSEEK.call}NAME{DEEPSEEK.arguments}",
    DEEPSEEK.call_end,
    trigger=DEEPSEEK.section,
    section=_section(DEEPSEEK),
)
KIMI_K2 = CallSyntax(
    f"{KIMI.call}functions.NAME:",
    KIMI.call_end,
    trigger=KIMI.section,
    section=_section(KIMI),
    arguments=_kimi_arguments,
)
QWEN3_CODER = CallSyntax(
    "<tool_call>\n<function=NAME>",
    "\n</function>\n</tool_call>",
    trigger="<tool_call>",
    separator="\n",
    arguments=lambda schema: _xml_arguments({"type": "qwen_xml_parameter", "json_schema": schema}),
)
GLM45 = CallSyntax(
    "<tool_call>NAME",
    "\n</tool_call>",
    trigger="<tool_call>",
    separator="\n",
    arguments=lambda schema: _xml_arguments({**_json(schema), "style": "glm_xml"}),
)
PYTHONIC = CallSyntax("NAME(", ")", trigger="", separator=", ", section=("[", "]"), arguments=_pythonic_arguments)
HARMONY = CallSyntax(
    "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
    "",
    trigger="<|channel|>commentary to=",
    once=True,
)
