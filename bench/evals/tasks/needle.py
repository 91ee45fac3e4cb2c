"""A needle in a haystack: does a model find one sentence, wherever it stands in a text of whatever length?"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from sgl.bench.evals.asks import Json, Model, Reply, Scores
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import Asking, at_least
from sgl.engine.base.errors import ConfigError
from sgl.engine.text.tokenizer import Tokenizer

LENGTHS = (256, 512, 1024)
DEPTHS = (0, 25, 50, 75, 100)
MAX_TOKENS = 64
_ROOM = 96
"""Tokens of a context that question, template and answer may need beside the text."""

_SUBJECTS = ("The baker", "A gardener", "The old clerk", "My neighbour", "The captain", "A student", "The painter")
_VERBS = ("carried", "sold", "found", "painted", "repaired", "counted", "described")
_THINGS = ("a blue chair", "two lamps", "the garden gate", "a box of nails", "an empty bottle", "the long letter")
_TIMES = ("on Monday", "before noon", "in the rain", "after lunch", "last winter", "near the harbour", "at dusk")
_KEYS = ("amber", "birch", "copper", "delta", "ember", "falcon", "garnet", "harbor", "indigo", "juniper")


def depths_of(text: str) -> tuple[int, ...]:
    """Percentages separated by commas.

    Raises:
        ConfigError: they are none.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) <= 100 for part in parts):
        message = f"--depths takes percentages from 0 to 100, separated by commas, got '{text}'."
        raise ConfigError(message, param="--depths")
    return tuple(map(int, parts))


class Needle:
    """
    Args:
        lengths: of the text, in tokens.
        depths: where the needle stands, in percent of the text.
        count: texts of every length and depth.
    """

    name = "needle"
    data = ""

    def __init__(
        self,
        lengths: Sequence[int] = LENGTHS,
        depths: Sequence[int] = DEPTHS,
        *,
        count: int = 4,
        asking: Asking = Asking(chat=True),  # noqa: B008 - frozen
    ) -> None:
        for length in lengths:
            at_least("--lengths", length, 64)
        at_least("--num-questions", count, 1)
        self.seed = asking.seed
        self._lengths, self._depths, self._count = tuple(lengths), tuple(depths), count
        self._asking = asking
        self.settings: dict[str, Any] = {"lengths": list(lengths), "depths": list(depths), **asking.settings()}

    def items(self, model: Model) -> list[Item]:
        longest, most = max(self._lengths), model.context_len
        if most is not None and longest + _ROOM > most:
            message = f"--lengths {longest} and the question do not fit the {most} tokens of context and KV cache."
            raise ConfigError(message, param="--lengths")
        return [
            self._item(model.tokenizer, length, depth, number)
            for length in self._lengths
            for depth in self._depths
            for number in range(self._count)
        ]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        numbers = re.findall(r"\d+", found.text.replace(",", ""))
        return Judgement(item.expected in numbers, numbers[-1] if numbers else "")

    def figures(self, records: Sequence[Record]) -> Json:
        return {}

    def _item(self, tokenizer: Tokenizer, length: int, depth: int, number: int) -> Item:
        rng = random.Random(f"needle {length} {depth} {number} {self.seed}")
        key, secret = rng.choice(_KEYS), str(rng.randint(10_000, 99_999))
        needle = f"The secret number of {key} is {secret}."
        sentences = haystack(tokenizer, rng, length - len(tokenizer.encode(needle, add_special_tokens=False)))
        place = round(len(sentences) * depth / 100)
        text = " ".join([*sentences[:place], needle, *sentences[place:]])
        ask = self._asking.ask(f"{text}\n\nWhat is the secret number of {key}?", MAX_TOKENS)
        return Item(f"needle/{length}/{depth}/{number}", ask, secret, f"{length} tokens, {depth}%")


def haystack(tokenizer: Tokenizer, rng: random.Random, num_tokens: int) -> list[str]:
    """Sentences that say nothing, of about so many tokens together, and not more."""
    sentences: list[str] = []
    while True:
        parts = rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_THINGS), rng.choice(_TIMES)
        sentence = f"{' '.join(parts)}."
        num_tokens -= len(tokenizer.encode(f" {sentence}", add_special_tokens=False))
        if num_tokens < 0:
            return sentences
        sentences.append(sentence)
