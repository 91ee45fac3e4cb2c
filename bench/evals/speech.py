"""How a model in this process writes calls and reasoning, as its server would read them; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sgl.bench.evals.asks import Call, Json
from sgl.engine.api import AsyncEngine
from sgl.engine.base.types import Grammar
from sgl.engine.text.parsers.constrain import after_reasoning, format_of, grammar_from, spoken
from sgl.engine.text.parsers.events import Message, collect
from sgl.engine.text.parsers.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ToolFormat,
    machine,
    reasoning_format_of,
    tool_format_of,
)
from sgl.engine.text.parsers.output import OutputParser
from sgl.engine.text.parsers.reasoning import ReasoningFormat


@dataclass(frozen=True)
class Speech:
    """The formats of one model, as far as they are known.

    Args:
        shows_marks: whether special tokens must stay in the text, since some of the marks are special tokens.
    """

    tool: ToolFormat | None
    reasoning: ReasoningFormat | None
    shows_marks: bool

    @staticmethod
    def of(engine: AsyncEngine) -> Speech:
        """What options, chat template and family of the loaded model say."""
        serve, info, tokenizer = engine.config.serve, engine.info, engine.tokenizer
        template = "\n".join(engine.template.sources.values())
        calls: str = serve.tool_call_parser
        thinks: str = serve.reasoning_parser
        if calls == "auto":
            calls = tool_format_of(template) or (info.tool_parser if "tools" in template else "")
        if thinks == "auto":
            thinks = reasoning_format_of(template) or info.reasoning_parser
        tool, reasoning = TOOL_FORMATS.get(calls), REASONING_FORMATS.get(thinks)
        marks = tool.marks if tool is not None else ()
        if reasoning is not None:
            marks = (*marks, reasoning.start, reasoning.end, *reasoning.marks)
        return Speech(tool, reasoning, any(tokenizer.id_of(mark) in tokenizer.special_ids for mark in marks))

    def read(self, prompt: str, text: str, tools: Sequence[Json]) -> Message:
        """Takes the answer to a prompt apart."""
        offered = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        parser = OutputParser(machine(self.tool, offered, self.reasoning, self._is_open(prompt), True))
        return collect([*parser.push(text), *parser.finish()])

    def grammar(self, prompt: str, schema: Json) -> Grammar:
        """What holds the content of an answer to a schema, behind the reasoning if there is some."""
        wanted = Grammar("json_schema", msgspec.json.encode(schema).decode())
        if self.reasoning is None:
            return wanted
        content = spoken(self.reasoning, format_of(wanted))
        return grammar_from(after_reasoning(self.reasoning, self._is_open(prompt), content))

    def _is_open(self, prompt: str) -> bool | None:
        return None if self.reasoning is None else self.reasoning.is_open(prompt)


def calls_of(message: Message) -> tuple[Call, ...]:
    return tuple(Call(call.name, call.arguments) for call in message.calls)
