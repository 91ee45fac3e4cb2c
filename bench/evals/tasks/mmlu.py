"""MMLU: questions of 57 subjects, each with four answers to choose from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Json, Model, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import Asking, at_least, from_hub, read_rows
from sgl.engine.base.errors import ConfigError

HUB = "cais/mmlu"
LETTERS = "ABCD"
_WIDTH = 6
_CHAT_TOKENS = 512
_TOLD = re.compile(r"(?i:answer)\W{0,6}(?:(?i:is)\W{0,4})?([ABCD])\b")

Row = Sequence[str]
"""Question, four answers, and the right one's letter."""


class Mmlu:
    """
    Args:
        data: the published folder, with ``dev/SUBJECT_dev.csv`` and ``test/SUBJECT_test.csv``; empty for the Hub.
        num_shots: examples of the same subject before each question.
        num_subjects: the first ones, by name; None for all.
        num_questions: of all subjects together, from the first on; None for all.
    """

    name = "mmlu"

    def __init__(
        self,
        data: str = "",
        *,
        num_shots: int = 5,
        num_subjects: int | None = None,
        num_questions: int | None = None,
        asking: Asking = Asking(),  # noqa: B008 - frozen
    ) -> None:
        at_least("--num-shots", num_shots, 0)
        at_least("--nsub", num_subjects, 1)
        at_least("--num-questions", num_questions, 1)
        self.data = data or HUB
        self.seed = asking.seed
        self._num_shots = num_shots
        self._num_subjects = num_subjects
        self._num_questions = num_questions
        self._asking = asking
        self.settings: dict[str, Any] = {"num_shots": num_shots, **asking.settings()}

    def items(self, model: Model) -> list[Item]:
        examples, tests = self._from_hub() if self.data == HUB else self._from_folder(Path(self.data))
        found: list[Item] = []
        for subject in sorted(tests)[: self._num_subjects]:
            rows = examples.get(subject, [])
            if len(rows) < self._num_shots:
                message = f"--num-shots {self._num_shots}, but {subject} has only {len(rows)} examples."
                raise ConfigError(message, param="--num-shots")
            name = subject.replace("_", " ")
            head = f"The following are multiple choice questions (with answers) about {name}.\n\n"
            shots = "".join(f"{_question(row)} {row[-1]}\n\n" for row in rows[: self._num_shots])
            for index, row in enumerate(tests[subject]):
                found.append(self._item(f"mmlu/{subject}/{index}", head + shots + _question(row), row[-1], name))
        return found[: self._num_questions]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        got = letter_in(found.text)
        return Judgement(got == item.expected, got)

    def figures(self, records: Sequence[Record]) -> Json:
        return {"invalid": sum(not record.got for record in records) / len(records)}

    def _item(self, name: str, prompt: str, letter: str, subject: str) -> Item:
        is_chat = self._asking.settings()["chat"]
        return Item(name, self._asking.ask(prompt, _CHAT_TOKENS if is_chat else 1), letter, subject)

    def _from_folder(self, folder: Path) -> tuple[Mapping[str, list[Row]], Mapping[str, list[Row]]]:
        files = sorted((folder / "test").glob("*_test.csv"))
        if not files:
            message = f"--data {folder} has no test/SUBJECT_test.csv; it must be the folder of the published archive."
            raise ConfigError(message, param="--data")
        tests = {file.stem.removesuffix("_test"): _rows(file) for file in files}
        dev = {subject: folder / "dev" / f"{subject}_dev.csv" for subject in tests}
        return {subject: _rows(file) for subject, file in dev.items() if self._num_shots}, tests

    def _from_hub(self) -> tuple[Mapping[str, list[Row]], Mapping[str, list[Row]]]:
        splits = []
        for split in ("dev", "test"):
            subjects: dict[str, list[Row]] = {}
            for row in from_hub(HUB, "all", split):
                cells = [str(row["question"]), *map(str, row["choices"]), LETTERS[int(row["answer"])]]
                subjects.setdefault(str(row["subject"]), []).append(cells)
            splits.append(subjects)
        return splits[0], splits[1]


def letter_in(text: str) -> str:
    """The letter that an answer begins with, or that it calls the answer; empty if there is none."""
    said = text.strip()
    if said and said[0] in LETTERS and not said[1:2].isalpha():
        return said[0]
    told = _TOLD.findall(said)
    return told[-1] if told else ""


def _question(row: Row) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0]}{choices}\nAnswer:"


def _rows(file: Path) -> list[Row]:
    rows: list[Row] = list(read_rows(file, _WIDTH))
    wrong = next((number for number, row in enumerate(rows, 1) if row[-1] not in tuple(LETTERS)), None)
    if wrong is not None:
        raise ConfigError(f"Row {wrong} of {file} has no letter of A to D as its answer.", param="--data")
    return rows
