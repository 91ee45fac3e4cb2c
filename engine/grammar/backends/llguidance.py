"""JSON schemas and regular expressions by llguidance, which computes masks lazily and within a budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from sgl.engine.base.types import UNSETTLED, Grammar, HostDraws
from sgl.engine.core.grammar import FORCED, OVER, Standing
from sgl.engine.grammar.backend import SEPARATOR_BLANK, Compiled, Masks, Matcher, Options, refusal, settle_each
from sgl.engine.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

PARALLEL_FROM = 1 << 20
"""Bits of masks from which threads are woken to fill them: for less they burn more time than they save."""

_MAX_THREADS = 8

_KEPT_TEXTS, _LONGEST_KEPT = 4096, 64


class GuidanceBackend:
    settles_ends = False

    def __init__(self, vocabulary: Vocabulary, options: Options) -> None:
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), n_vocab=vocabulary.end_id + 1)
        self._executor = LLExecutor(_MAX_THREADS)
        self._json: JsonCompileOptions = {"whitespace_flexible": options.whitespace is not None}
        if options.whitespace is None:
            self._json |= {"item_separator": f",{SEPARATOR_BLANK}", "key_separator": f":{SEPARATOR_BLANK}"}
        else:
            self._json |= {"whitespace_pattern": options.whitespace}
        self._limits = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)

    def compile(self, grammar: Grammar) -> Compiled:
        if grammar.kind == "regex":
            source = LLMatcher.grammar_from_regex(grammar.source)
        else:
            assert grammar.kind == "json_schema", grammar.kind
            source = LLMatcher.grammar_from_json_schema(grammar.source, overrides=self._json)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        return GuidanceCompiled(matcher)

    def settle(self, matchers: Sequence[Matcher], draws: HostDraws) -> int:
        return settle_each(cast(Sequence[GuidanceMatcher], matchers), draws)

    def advance(self, matchers: Sequence[Matcher], draws: HostDraws) -> None:
        """Nothing: it limits no logits."""

    def fill(self, matchers: Sequence[Matcher], masks: Masks) -> Collection[int]:
        rows = [matcher.library for matcher in cast(Sequence[GuidanceMatcher], matchers)]
        if 32 * masks.size < PARALLEL_FROM:
            begin, size = masks.ctypes.data, masks.strides[0]
            for number, row in enumerate(rows):
                row.unsafe_compute_mask_ptr(begin + number * size, size)
        else:
            numbered = [(row, index) for index, row in enumerate(rows)]
            self._executor.unsafe_compute_mask_ptr(numbered, masks.ctypes.data, masks.strides[0], len(masks))
        return ()


class GuidanceCompiled:
    def __init__(self, pristine: LLMatcher) -> None:
        self._pristine = pristine

    def matcher(self, ends: Collection[int] = ()) -> Matcher:
        return GuidanceMatcher(self._pristine.deep_copy())


class GuidanceMatcher:
    """Its masks allow a single token wherever the text is forced, the one that the tokenizer would make of it."""

    def __init__(self, library: LLMatcher) -> None:
        self.library = library
        self._try = library.try_consume_tokens
        self._forced: list[int] | None = None

    def settle(self, likeliest: int) -> int:
        forced = self.forced() if self._forced is None else self._forced
        if forced:  # others may fit, but the mask allows only the usual one
            likeliest = forced[0]
        if likeliest < 0 or self._try([likeliest]) != 1:
            return UNSETTLED
        self._forced = forced[1:] or None
        return likeliest

    def accept(self, token_id: int) -> None:
        forced = self._forced
        self._forced = forced[1:] or None if forced and forced[0] == token_id else None
        self.library.consume_token(token_id)

    def forced(self) -> list[int]:
        if self._forced is None:  # most often nothing is, and the bytes tell that soonest
            self._forced = self.library.compute_ff_tokens() if self.library.compute_ff_bytes() else []
        return self._forced

    def finished(self) -> bool:
        return self.library.is_stopped() and not self.library.is_error()

    def standing(self) -> Standing:
        return OVER if self.finished() else FORCED

    def error(self) -> str | None:
        return self.library.get_error().partition("\n")[0] if self.library.is_error() else None


class _Tokens:
    """A vocabulary in the form that the library reads."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_id
        self.tokens = [*vocabulary.pieces, b"<end>"]
        self.special_token_ids = [*vocabulary.special, vocabulary.end_id]
        self._usual = vocabulary.usual_tokens
        self._kept = lru_cache(_KEPT_TEXTS)(self._usual)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of forced text, which is short and comes again and again."""
        return self._kept(text) if len(text) <= _LONGEST_KEPT else self._usual(text)
