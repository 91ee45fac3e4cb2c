"""What a task is made of: its items, how an answer to one is judged, and the record of that. Data and one protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from sgl.bench.evals.asks import Ask, Json, Model, Passage, Reply, Scores


@dataclass(frozen=True)
class Item:
    """One thing to ask.

    Args:
        id: stable: the same item has the same one in every run.
        expected: what a right answer has, as JSON.
        group: a subject, a skill, a length; accuracy is also told by group where there are some.
    """

    id: str
    ask: Ask | Passage
    expected: Any = None
    group: str = ""

    @cached_property
    def key(self) -> str:
        """Names the item with everything that its answer and judgement depend on."""
        content = [self.id, self.group, self.expected, self.ask.to_dict()]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Judgement:
    """What an answer is worth.

    Args:
        is_right: None where the task has no right and wrong.
        got: what was read out of the answer, as JSON.
        figures: numbers of this item that the task sums up.
    """

    is_right: bool | None
    got: Any = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One item that was answered and judged, or that failed: then ``error`` says why, and it counts for nothing.

    Args:
        finish: stop, length or tool_calls; empty for a passage.
    """

    key: str
    id: str
    group: str = ""
    is_right: bool | None = None
    expected: Any = None
    got: Any = None
    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


class Task(Protocol):
    """A test."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What items and judgement were made with; two runs are comparable if theirs are equal."""

    @property
    def data(self) -> str:
        """File or Hub id that the items are from; empty if they are made."""

    @property
    def seed(self) -> int:
        """Of what is drawn."""

    def items(self, model: Model) -> Sequence[Item]:
        """
        Raises:
            ConfigError: the data cannot be read, or the model lacks what the task needs.
        """

    def judge(self, item: Item, found: Reply | Scores) -> Judgement: ...

    def figures(self, records: Sequence[Record]) -> Json:
        """Further figures of a run, by name."""


def record_of(item: Item, found: Reply | Scores, judgement: Judgement) -> Record:
    """What is kept of an answer."""
    text, finish, num_tokens = "", "", 0
    if isinstance(found, Reply):
        text, finish, num_tokens = found.text, found.finish, found.completion_tokens
    return Record(
        key=item.key,
        id=item.id,
        group=item.group,
        is_right=judgement.is_right,
        expected=item.expected,
        got=judgement.got,
        text=text,
        finish=finish,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=num_tokens,
        figures=judgement.figures,
    )
