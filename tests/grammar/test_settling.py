"""What is settled without a mask is what the mask allows, and leads to the same place."""

from __future__ import annotations

import json
import random

import pytest

from sgl.engine.grammar.backend import BackendName, Compiled, Kind, Matcher
from tests.grammar.harness import BACKENDS, allowed, compiled, demo_vocabulary, settled

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, tuple[Kind, str]] = {
    "words": ("regex", r"([a-z]{2,5} ){3}end"),
    "letters": ("regex", r"[äöü€]{1,3}|x+"),
    "person": ("json_schema", json.dumps(PERSON)),
    "sums": ("ebnf", 'root ::= n ("+" n)*\nn ::= [0-9]+ | "(" root ")"'),
}
ABLE: dict[BackendName, tuple[Kind, ...]] = {
    "native": ("json_schema", "regex"),
    "llguidance": ("json_schema", "regex"),
    "xgrammar": ("json_schema", "regex", "ebnf"),
    "outlines": ("json_schema", "regex"),
}
CASES = [(backend, name) for backend in BACKENDS for name, (kind, _) in GRAMMARS.items() if kind in ABLE[backend]]


def at(grammar: Compiled, tokens: list[int]) -> Matcher:
    matcher = grammar.matcher()
    for token_id in tokens:
        matcher.accept(token_id)
    return matcher


@pytest.mark.parametrize(("backend", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_what_is_settled_is_what_the_mask_allows(backend: BackendName, name: str) -> None:
    rng = random.Random(f"{backend} {name}")
    grammar, end_id = compiled(backend, *GRAMMARS[name], demo=True), demo_vocabulary().end_id
    tokens: list[int] = []
    for _ in range(12):
        mask = allowed(backend, at(grammar, tokens), demo=True) - {end_id}
        if not mask:
            break
        candidates = rng.sample(sorted(mask), min(len(mask), 12)) + rng.sample(range(end_id), 25)
        for token_id in [-1, *candidates]:
            matcher = at(grammar, tokens)
            (found,) = settled(backend, [matcher], [token_id], demo=True)
            assert found == (token_id if token_id in mask else -1) or mask == {found}, (tokens, token_id)
            reached = at(grammar, tokens if found < 0 else [*tokens, found])
            assert allowed(backend, matcher, demo=True) == allowed(backend, reached, demo=True)
            assert matcher.error() is None
        tokens.append(rng.choice(sorted(mask)))
    assert tokens
