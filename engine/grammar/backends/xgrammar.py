"""All four languages by xgrammar, which computes the masks of most states when it compiles."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import cast

import numpy as np
import xgrammar

from sgl.engine.base.types import UNSETTLED, Grammar, HostDraws
from sgl.engine.core.grammar import OPEN, OVER, Standing
from sgl.engine.grammar.backend import Compiled, Masks, Matcher, Options, refusal, settle_each
from sgl.engine.grammar.limits import Limits
from sgl.engine.grammar.vocabulary import Vocabulary


class XGrammarBackend:
    settles_ends = False

    def __init__(self, vocabulary: Vocabulary, options: Options) -> None:
        self._plain = _compiler(vocabulary, vocabulary.pieces)
        with_special = [vocabulary.special.get(token_id, piece) for token_id, piece in enumerate(vocabulary.pieces)]
        self._tagging = _compiler(vocabulary, with_special) if vocabulary.special else self._plain
        self._words = vocabulary.mask_words
        self._end_id = vocabulary.end_id
        self._wants_blanks = options.whitespace is not None

    def compile(self, grammar: Grammar) -> Compiled:
        try:
            match grammar.kind:
                case "json_schema":
                    if self._wants_blanks:
                        raise refusal(grammar, "xgrammar does not know --constrained-json-whitespace-pattern")
                    compiled = self._plain.compile_json_schema(
                        grammar.source, any_whitespace=False, separators=(", ", ": "), strict_mode=False
                    )
                case "regex":
                    compiled = self._plain.compile_regex(grammar.source)
                case "ebnf":
                    compiled = self._plain.compile_grammar(grammar.source)
                case "structural_tag":
                    compiled = self._tagging.compile_structural_tag(grammar.source)
        except (RuntimeError, ValueError, TypeError) as error:
            raise refusal(grammar, _reason(error)) from None
        return XGrammarCompiled(compiled, self._words, self._end_id)

    def settle(self, matchers: Sequence[Matcher], draws: HostDraws) -> int:
        return settle_each(cast(Sequence[XGrammarMatcher], matchers), draws)

    def advance(self, matchers: Sequence[Matcher], draws: HostDraws) -> None:
        """Nothing: it limits no logits."""

    def fill(self, matchers: Sequence[Matcher], masks: Masks) -> Collection[int]:
        for matcher, mask in zip(matchers, masks, strict=True):
            assert isinstance(matcher, XGrammarMatcher)
            matcher.fill(mask)
        return ()


class XGrammarCompiled:
    def __init__(self, library: xgrammar.CompiledGrammar, words: int, end_id: int) -> None:
        self._library, self._words, self._end_id = library, words, end_id

    def matcher(self, ends: Collection[int] = ()) -> Matcher:
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._library), self._words, self._end_id)


class XGrammarMatcher:
    """The library sets no limit to what a mask costs, so one that takes long is the last."""

    def __init__(self, library: xgrammar.GrammarMatcher, words: int, end_id: int) -> None:
        self._library = library
        self._only_end = np.zeros(words, np.int32)
        self._only_end.view(np.uint32)[end_id // 32] = 1 << end_id % 32
        self._error: str | None = None

    def fill(self, mask: Masks) -> None:
        begin_s = time.thread_time()
        self._library.fill_next_token_bitmask(mask[None])
        if time.thread_time() - begin_s > Limits().mask_s:
            self._error = "a mask takes too long to compute"
        if self._error is not None:
            mask[:] = self._only_end

    def settle(self, likeliest: int) -> int:
        fits = likeliest >= 0 and self._error is None and self._library.accept_token(likeliest)
        return likeliest if fits else UNSETTLED

    def accept(self, token_id: int) -> None:
        if not self._library.accept_token(token_id):
            self._error = f"token {token_id} does not fit"

    def forced(self) -> list[int]:
        return []

    def finished(self) -> bool:
        if not self._library.is_completed():
            return False
        mask = np.zeros((1, len(self._only_end)), np.int32)
        self._library.fill_next_token_bitmask(mask)
        return bool((mask[0] == self._only_end).all())

    def standing(self) -> Standing:
        return OVER if self.finished() else OPEN

    def error(self) -> str | None:
        return self._error


def _compiler(vocabulary: Vocabulary, pieces: Sequence[bytes]) -> xgrammar.GrammarCompiler:
    info = xgrammar.TokenizerInfo(
        [*pieces, b""],
        xgrammar.VocabType.RAW,
        vocab_size=vocabulary.end_id + 1,
        stop_token_ids=[vocabulary.end_id],
    )
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _reason(error: Exception) -> str:
    """Without the time and the place in the library's source that begin its messages."""
    text = str(error).strip()
    return text.partition(": ")[2] if text.startswith("[") and ".cc:" in text else text
