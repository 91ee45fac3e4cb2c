"""The demo model's skills as tasks: whole replies have to match, as in its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl.bench.evals.asks import Ask, Json, Model, Reply, Scores
from sgl.bench.evals.demo.held_out import held_out_items, split_last
from sgl.bench.evals.demo.skills import SKILLS
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.options import closest

MAX_TOKENS = 120
PREFIX = "demo-"
CARD_ITEMS, CARD_SEED = 400, 1
"""What the model card was measured with."""


def skill_of(name: str) -> str:
    """From ``demo-two-words`` or ``two-words`` to the skill.

    Raises:
        ConfigError: there is none of that name.
    """
    by_name = {slug(skill): skill for skill in SKILLS}
    wanted = slug(name.removeprefix(PREFIX))
    if wanted not in by_name:
        hint = closest(wanted, by_name) or f" It has {', '.join(sorted(by_name))}."
        raise ConfigError(f"The demo model has no skill '{name}'.{hint}", param="--skills")
    return by_name[wanted]


def slug(skill: str) -> str:
    """A skill's name on the command line."""
    return skill.replace(" ", "-").replace("_", "-")


class Demo:
    """Some skills, or all.

    Args:
        skills: by their names in `SKILLS`; empty for all.
        count: items of each; a skill may hold fewer.
        seed: which held-out items are drawn.
    """

    data = ""

    def __init__(self, skills: Sequence[str] = (), count: int = CARD_ITEMS, seed: int = CARD_SEED) -> None:
        if count < 1:
            raise ConfigError(f"--num-questions must be at least 1, got {count}.", param="--num-questions")
        self.skills = tuple(map(skill_of, skills)) or tuple(SKILLS)
        self.seed = seed
        self.count = count
        self.name = "demo" if len(self.skills) != 1 else PREFIX + slug(self.skills[0])
        self.settings: dict[str, Any] = {"seed": seed}

    def items(self, model: Model) -> list[Item]:
        """The prompts as the model's own template writes them, as token ids: an answer is then the raw text."""
        tokenizer, template = model.tokenizer, model.template
        found: list[Item] = []
        for skill in self.skills:
            for number, dialogue in enumerate(held_out_items(skill, self.count, self.seed)):
                prompt, turn = split_last(template, dialogue)
                ids = tuple(tokenizer.encode(prompt, add_special_tokens=False))
                # The end mark is a token that ends the answer and so no part of its text.
                marks = [tokenizer.token_text(token_id) for token_id in tokenizer.eos_ids]
                end = next((mark for mark in marks if mark and turn.endswith(mark)), "")
                ask = Ask(prompt=ids, max_tokens=MAX_TOKENS)
                found.append(Item(f"{slug(skill)}/{number}", ask, turn.removesuffix(end), skill.replace("_", " ")))
        return found

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Reply)
        return Judgement(found.text == item.expected and found.finish == "stop", found.text)

    def figures(self, records: Sequence[Record]) -> Json:
        return {"ended": sum(record.finish == "stop" for record in records) / len(records)}
