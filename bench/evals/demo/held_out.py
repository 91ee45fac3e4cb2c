"""Draws what the demo model has never seen; asks nothing and judges nothing."""

from __future__ import annotations

import json
import random

from sgl.bench.evals.demo.dialogue import Dialogue
from sgl.bench.evals.demo.skills import draw
from sgl.engine.text.template import ChatTemplate

TRAINING_DRAWS = 10_000


def gist(dialogue: Dialogue) -> str:
    """What is asked, without capitals and final marks, and with the tools on offer."""
    said = [str(message["content"]).lower().rstrip("?.!") for message in dialogue.messages[:-1]]
    return json.dumps([said, dialogue.tools])


def held_out_items(skill: str, count: int, seed: int) -> list[Dialogue]:
    """Distinct held-out dialogues, fewer than ``count`` where a skill does not hold that many."""
    rng = random.Random(f"evaluate {skill} {seed}")
    # Two phrasings may differ in capitals or the final mark alone; such twins of training prompts do not count.
    found: dict[str, Dialogue | None] = {gist(draw(rng, skill, False)): None for _ in range(TRAINING_DRAWS)}
    trained = len(found)
    for _ in range(40 * count):
        dialogue = draw(rng, skill, True)
        found.setdefault(gist(dialogue), dialogue)
        if len(found) == trained + count:
            break
    return [dialogue for dialogue in found.values() if dialogue]


def split_last(template: ChatTemplate, dialogue: Dialogue) -> tuple[str, str]:
    """The prompt up to the last turn, which is the assistant's, and that turn with its end mark."""
    whole = template.render(dialogue.messages, dialogue.tools or None, add_generation_prompt=False)
    prompt = template.render(dialogue.messages[:-1], dialogue.tools or None)
    return prompt, whole[len(prompt) :].rstrip("\n")
