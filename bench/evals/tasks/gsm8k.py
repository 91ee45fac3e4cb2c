"""GSM8K: grade school sums in words, whose answer is a number at the end of some reasoning."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Json, Model, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import Asking, at_least, from_hub, read_objects
from sgl.engine.base.errors import ConfigError

HUB = "openai/gsm8k"
MAX_TOKENS = 512
STOP = ("Question", "Assistant:", "<|separator|>")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


class Gsm8k:
    """
    Args:
        data: the file of test questions as published (``test.jsonl``: question, answer); empty for the Hub.
        shots_from: the file that examples are from (``train.jsonl``); empty for the first questions of ``data``, which
            are then not asked.
        num_questions: None for all.
    """

    name = "gsm8k"

    def __init__(
        self,
        data: str = "",
        *,
        num_shots: int = 5,
        num_questions: int | None = 200,
        shots_from: str = "",
        asking: Asking = Asking(),  # noqa: B008 - frozen
    ) -> None:
        at_least("--num-shots", num_shots, 0)
        at_least("--num-questions", num_questions, 1)
        self.data = data or HUB
        self.seed = asking.seed
        self._num_shots = num_shots
        self._num_questions = num_questions
        self._shots_from = shots_from
        self._asking = asking
        self.settings: dict[str, Any] = {"num_shots": num_shots, "shots_from": shots_from, **asking.settings()}

    def items(self, model: Model) -> list[Item]:
        rows = self._rows(self.data, "test")
        examples = self._rows(self._shots_from, "train") if self._shots_from else rows
        if len(examples) < self._num_shots:
            message = f"--num-shots {self._num_shots}, but there are only {len(examples)} examples."
            raise ConfigError(message, param="--num-shots")
        shots = "".join(f"{_example(row)} {row['answer']}\n\n" for row in examples[: self._num_shots])
        begin = 0 if self._shots_from else self._num_shots
        asked = list(enumerate(rows))[begin:][: self._num_questions]
        if not asked:
            message = f"{self.data} has {len(rows)} questions, of which --num-shots {self._num_shots} are examples."
            raise ConfigError(message, param="--num-shots")
        return [
            Item(f"gsm8k/{index}", self._asking.ask(shots + _example(row), MAX_TOKENS, STOP), _expected(row, index))
            for index, row in asked
        ]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        got = number_in(found.text)
        return Judgement(got is not None and math.isclose(got, item.expected, rel_tol=1e-9, abs_tol=1e-9), got)

    def figures(self, records: Sequence[Record]) -> Json:
        return {"invalid": sum(record.got is None for record in records) / len(records)}

    def _rows(self, source: str, split: str) -> list[dict[str, Any]]:
        rows = from_hub(HUB, "main", split) if source == HUB else read_objects(Path(source), ("question", "answer"))
        return [{name: str(row[name]) for name in ("question", "answer")} for row in rows]


def number_in(text: str) -> float | None:
    """The number that an answer gives: behind its mark (####), in its box, or the last of all; None without any."""
    boxed = _BOXED.findall(text)
    marked = text.rpartition("####")[2] if "####" in text else ""
    for part in (marked, boxed[-1] if boxed else "", text):
        found = _NUMBER.findall(part)
        if found:
            return float((found[0] if part is marked else found[-1]).replace(",", ""))
    return None


def _example(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def _expected(row: dict[str, Any], index: int) -> float:
    value = number_in(row["answer"])
    if value is None:
        raise ConfigError(f"The answer of question {index} has no number: {row['answer'][:60]!r}.", param="--data")
    return value
