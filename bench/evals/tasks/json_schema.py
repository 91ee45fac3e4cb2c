"""Structured output: is what a model writes under a JSON schema valid by that schema?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Ask, Json, Model, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import Asking, at_least, read_objects
from sgl.engine.base.errors import ConfigError

MAX_TOKENS = 512

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 30},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
BUILT_IN: tuple[tuple[str, Json], ...] = (
    ("Anna is 31 years old and lives in Berlin. Extract name, age and city as JSON.", _PERSON),
    (
        "Order: 4 x lamp, 25 dollars. Extract item, quantity and price as JSON.",
        {
            "type": "object",
            "properties": {
                "item": {"type": "string", "pattern": "^[a-z]{1,20}$"},
                "quantity": {"type": "integer", "minimum": 1, "maximum": 999},
                "price": {"type": "number", "minimum": 0, "maximum": 100000},
            },
            "required": ["item", "quantity", "price"],
            "additionalProperties": False,
        },
    ),
    (
        "Is Lima the capital of Peru? Answer in JSON with a verdict.",
        {
            "type": "object",
            "properties": {"verdict": {"enum": ["yes", "no", "unknown"]}},
            "required": ["verdict"],
            "additionalProperties": False,
        },
    ),
    (
        "List three fruits as a JSON array.",
        {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 3, "maxItems": 3},
    ),
    (
        "Describe two people, Tom (20, Rome) and Eva (40, Oslo), as JSON with a list of people.",
        {
            "type": "object",
            "properties": {"people": {"type": "array", "items": _PERSON, "minItems": 2, "maxItems": 2}},
            "required": ["people"],
            "additionalProperties": False,
        },
    ),
    (
        "How warm is it? Answer with degrees in JSON, or null if you do not know.",
        {
            "type": "object",
            "properties": {
                "degrees": {"anyOf": [{"type": "integer", "minimum": -90, "maximum": 60}, {"type": "null"}]}
            },
            "required": ["degrees"],
            "additionalProperties": False,
        },
    ),
    (
        "The meeting is on Monday at the office. Extract day and place as JSON.",
        {
            "type": "object",
            "properties": {
                "day": {"enum": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]},
                "place": {"type": "string", "minLength": 1, "maxLength": 30},
            },
            "required": ["day", "place"],
            "additionalProperties": False,
        },
    ),
    ("Say true or false: 2 + 2 = 4.", {"type": "boolean"}),
)
"""Prompts with schemas, all of which end: none allows an endless answer."""


class JsonSchema:
    """
    Args:
        data: JSONL with ``prompt`` (or ``messages``) and ``schema``; empty for `BUILT_IN`.
        is_held: whether the model is held to the schema; otherwise it is only asked, and the schema is in the prompt.
    """

    name = "json-schema"

    def __init__(
        self,
        data: str = "",
        *,
        num_questions: int | None = None,
        is_held: bool = True,
        asking: Asking = Asking(chat=True),  # noqa: B008 - frozen
    ) -> None:
        at_least("--num-questions", num_questions, 1)
        self.data = data
        self.seed = asking.seed
        self._num_questions = num_questions
        self._is_held = is_held
        self._asking = asking
        self.settings: dict[str, Any] = {"is_held": is_held, **asking.settings()}
        try:
            import jsonschema  # noqa: F401 - needed later, said now
        except ImportError:
            raise ConfigError("This task checks answers with jsonschema: pip install 'sgl[eval]'.") from None

    def items(self, model: Model) -> list[Item]:
        rows: list[Json] = [{"prompt": prompt, "schema": schema} for prompt, schema in BUILT_IN]
        if self.data:
            rows = read_objects(Path(self.data), ("schema",))
        found = []
        for index, row in enumerate(rows[: self._num_questions]):
            if not isinstance(row["schema"], dict) or not (row.get("prompt") or row.get("messages")):
                message = f"Case {index} of {self.data} needs an object as schema, and a prompt or messages."
                raise ConfigError(message, param="--data")
            ask = self._ask(row)
            found.append(Item(str(row.get("id") or f"json-schema/{index}"), ask, row["schema"]))
        return found

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        fault = fault_of(found.text, item.expected)
        return Judgement(not fault, fault or "valid")

    def figures(self, records: Sequence[Record]) -> Json:
        return {}

    def _ask(self, row: Json) -> Ask:
        schema = row["schema"]
        prompt = str(row.get("prompt") or "")
        if not self._is_held:
            prompt += f"\nAnswer with JSON only, valid by this schema: {json.dumps(schema)}"
        ask = self._asking.ask(prompt, MAX_TOKENS)
        messages = tuple(row["messages"]) if row.get("messages") else ask.messages
        fields = {**ask.to_dict(), "messages": messages, "schema": schema if self._is_held else None}
        return Ask(**fields)


def fault_of(text: str, schema: Json) -> str:
    """What is wrong with an answer, in a sentence; empty if it is valid JSON by the schema."""
    import jsonschema

    try:
        content = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    fault = next(iter(validator(schema).iter_errors(content)), None)
    return "" if fault is None else f"invalid: {fault.message[:200]}"
