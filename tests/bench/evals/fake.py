"""A model whose answers the test decides; computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from sgl.bench.evals.asks import Ask, Identity, Json, Passage, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.engine.base.errors import SglError
from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer

T = TypeVar("T")


class FakeModel:
    """
    Args:
        answers: from a prompt to what is said to it; an error is raised.
        tokenizer: for tasks that need one.
    """

    context_len = 2048

    def __init__(
        self,
        answers: Callable[[str], Reply | SglError] = lambda prompt: Reply(prompt, "stop", 1, 1),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._answers = answers
        self._tokenizer = tokenizer
        self.asked: list[str] = []
        self.identity = Identity("fake", {"model_path": "fake"})
        self.template = ChatTemplate({})

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None
        return self._tokenizer

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(coroutine)

    async def answer(self, ask: Ask) -> Reply:
        prompt = str(ask.prompt or ask.messages[-1]["content"])
        self.asked.append(prompt)
        found = self._answers(prompt)
        if isinstance(found, SglError):
            raise found
        return found

    async def score(self, passage: Passage) -> Scores:
        wanted = passage.token_ids[passage.start :]
        return Scores(tuple(-float(token) for token in wanted), tuple(token == 0 for token in wanted), len(wanted))

    def close(self) -> None:
        pass


class Echo:
    """A task whose right answers are its questions."""

    name = "echo"
    data = ""
    seed = 0

    def __init__(self, questions: Sequence[str], **settings: Any) -> None:
        self.settings = settings
        self._questions = questions

    def items(self, model: object) -> list[Item]:
        return [Item(f"echo/{i}", Ask(prompt=text), text) for i, text in enumerate(self._questions)]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        return Judgement(found.text == item.expected, found.text)

    def figures(self, records: Sequence[Record]) -> Json:
        return {"num_records": len(records)}
