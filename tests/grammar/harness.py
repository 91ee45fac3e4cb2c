"""Runs compiled grammars over vocabularies without a model."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sgl.engine.base.types import Grammar, HostDraws
from sgl.engine.grammar.backend import Backend, BackendName, Compiled, Kind, Matcher, Options, open_backend
from sgl.engine.grammar.source import lowered, prepare
from sgl.engine.grammar.vocabulary import BYTES, Vocabulary, vocabulary_of
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer
from sgl.kernels.cpu import native

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
"""Where there is one, automata that cannot be built are failures."""

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"
BACKENDS: tuple[BackendName, ...] = ("native", "llguidance", "xgrammar", "outlines")


@cache
def demo_tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@cache
def demo_vocabulary() -> Vocabulary:
    return vocabulary_of(demo_tokenizer(), 3072)


@cache
def backend(name: BackendName, *, demo: bool = False) -> Backend:
    return open_backend(name, demo_vocabulary() if demo else BYTES, Options())


def compiled(name: BackendName, kind: Kind, source: str, *, demo: bool = False) -> Compiled:
    grammar = Grammar(kind, source)
    if name == "native":
        prepared = lowered(grammar, None) if kind == "json_schema" else grammar
    else:
        prepared = prepare(grammar, name).grammar
    return backend(name, demo=demo).compile(prepared)


def allowed(name: BackendName, matcher: object, *, demo: bool = False) -> set[int]:
    """The tokens that may come, `Vocabulary.end_id` among them if the output may end."""
    vocabulary = demo_vocabulary() if demo else BYTES
    masks = np.zeros((1, vocabulary.mask_words), np.int32)
    backend(name, demo=demo).fill([matcher], masks)  # type: ignore[list-item]
    bits = np.flatnonzero(np.unpackbits(masks.view(np.uint8)[0], bitorder="little"))
    return {int(bit) for bit in bits if bit <= vocabulary.end_id}


def settled(
    name: BackendName,
    matchers: Sequence[Matcher],
    likeliest: Sequence[int],
    logits: NDArray[np.float32] | None = None,
    *,
    demo: bool = False,
) -> list[int]:
    """What a backend makes of the likeliest tokens; float32 [N, width] may be limited."""
    tokens = (ctypes.c_int64 * len(likeliest))(*likeliest)
    address, width = (0, 0) if logits is None else (logits.ctypes.data, logits.shape[1])
    left = backend(name, demo=demo).settle(matchers, HostDraws(tokens, range(len(matchers)), address, width))
    assert left == sum(token_id < 0 for token_id in tokens)
    return list(tokens)


def accepts(name: BackendName, grammar: Compiled, tokens: list[int], *, demo: bool = False) -> bool:
    """Whether the tokens are allowed one by one, and the output may end behind them."""
    matcher = grammar.matcher()
    end_id = (demo_vocabulary() if demo else BYTES).end_id
    for token_id in tokens:
        if token_id not in allowed(name, matcher, demo=demo):
            return False
        matcher.accept(token_id)
        assert matcher.error() is None
    return end_id in allowed(name, matcher, demo=demo)


def sample(name: BackendName, grammar: Compiled, rng: random.Random, max_tokens: int = 300) -> bytes | None:
    """A random output over the demo model's vocabulary; None if it has no end by then."""
    matcher, vocabulary = grammar.matcher(), demo_vocabulary()
    text = b""
    for _ in range(max_tokens):
        if matcher.finished():
            return text
        choices = sorted(allowed(name, matcher, demo=True))
        assert choices, f"nothing may follow {text!r}"
        token_id = rng.choice(choices)
        if token_id == vocabulary.end_id:
            return text
        assert vocabulary.pieces[token_id], "a token without text"
        matcher.accept(token_id)
        assert matcher.error() is None
        text += vocabulary.pieces[token_id]
    return None
