"""Tool calls: does a model call the functions that it should, with the arguments that it should?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Ask, Call, Json, Model, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import Asking, at_least, read_objects
from sgl.engine.base.errors import ConfigError

MAX_TOKENS = 512


class ToolCalls:
    """
    Args:
        data: JSONL with ``tools`` and ``messages`` (or ``prompt``) in OpenAI's form, and ``expected``: a list of
            ``{"name", "arguments"}``, empty where no call is right. Parallel calls may come in any order.
    """

    name = "tool-calls"

    def __init__(
        self,
        data: str,
        *,
        num_questions: int | None = None,
        asking: Asking = Asking(chat=True),  # noqa: B008 - frozen
    ) -> None:
        at_least("--num-questions", num_questions, 1)
        if not data:
            raise ConfigError("tool-calls needs --data, a file of cases; see docs/evaluation.md.", param="--data")
        self.data = data
        self.seed = asking.seed
        self._num_questions = num_questions
        self._asking = asking
        self.settings: dict[str, Any] = asking.settings()

    def items(self, model: Model) -> list[Item]:
        rows = read_objects(Path(self.data), ("tools", "expected"))[: self._num_questions]
        return [self._item(index, row) for index, row in enumerate(rows)]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        got = [_plain(call) for call in found.calls]
        is_right = _sorted(got) == _sorted(item.expected)
        names = _sorted(call["name"] for call in got) == _sorted(call["name"] for call in item.expected)
        valid = all(isinstance(call["arguments"], dict) for call in got)
        figures = {"right_names": float(names), "valid_arguments": float(valid)}
        return Judgement(is_right, got, figures)

    def figures(self, records: Sequence[Record]) -> Json:
        """How often the functions were the right ones, whatever the arguments, and all arguments were JSON objects."""
        names = ("right_names", "valid_arguments")
        return {name: sum(record.figures[name] for record in records) / len(records) for name in names}

    def _item(self, index: int, row: Json) -> Item:
        expected = row["expected"]
        has_calls = isinstance(expected, list) and all(
            isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
            for call in expected
        )
        if not has_calls or not isinstance(row["tools"], list) or not (row.get("messages") or row.get("prompt")):
            message = f"Case {index} of {self.data} needs tools, messages or a prompt, and expected calls."
            raise ConfigError(message, param="--data")
        ask: Ask = self._asking.ask(str(row.get("prompt") or " "), MAX_TOKENS)
        messages = tuple(row["messages"]) if row.get("messages") else ask.messages
        wanted = [{"name": call["name"], "arguments": call["arguments"]} for call in expected]
        name, group = str(row.get("id") or f"tool-calls/{index}"), str(row.get("group") or "")
        return Item(name, replace(ask, messages=messages, tools=tuple(row["tools"])), wanted, group)


def _plain(call: Call) -> Json:
    """A call with its arguments as JSON; as the text they are, if that is none."""
    try:
        return {"name": call.name, "arguments": json.loads(call.arguments)}
    except ValueError:
        return {"name": call.name, "arguments": call.arguments}


def _sorted(values: Any) -> list[str]:
    """Order does not count; 1 and 1.0 are the same number."""
    return sorted(json.dumps(_number(value), sort_keys=True) for value in values)


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_number(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
