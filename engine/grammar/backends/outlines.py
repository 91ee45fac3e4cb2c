"""Regular expressions, and the JSON schemas that can be written as one, by outlines_core, which compiles to tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import outlines_core
from outlines_core import json_schema

from sgl.engine.base.types import UNSETTLED, Grammar, HostDraws
from sgl.engine.core.grammar import OPEN, OVER, Standing
from sgl.engine.grammar.backend import Compiled, Masks, Matcher, Options, refusal, settle_each
from sgl.engine.grammar.vocabulary import Vocabulary


class OutlinesBackend:
    settles_ends = False

    def __init__(self, vocabulary: Vocabulary, options: Options) -> None:
        ids: dict[bytes | str, list[int]] = {}
        for token_id, piece in enumerate(vocabulary.pieces):
            if piece:
                ids.setdefault(piece, []).append(token_id)
        self._vocabulary = outlines_core.Vocabulary(vocabulary.end_id, ids)
        self._end_id = vocabulary.end_id
        self._whitespace = options.whitespace

    def compile(self, grammar: Grammar) -> Compiled:
        try:
            pattern = grammar.source
            if grammar.kind == "json_schema":
                pattern = json_schema.build_regex_from_schema(grammar.source, self._whitespace)
            index = outlines_core.Index(pattern, self._vocabulary)
        except (ValueError, TypeError, RuntimeError) as error:
            raise refusal(grammar, error) from None
        return OutlinesCompiled(index, self._end_id)

    def settle(self, matchers: Sequence[Matcher], draws: HostDraws) -> int:
        return settle_each(cast(Sequence[OutlinesMatcher], matchers), draws)

    def advance(self, matchers: Sequence[Matcher], draws: HostDraws) -> None:
        """Nothing: it limits no logits."""

    def fill(self, matchers: Sequence[Matcher], masks: Masks) -> Collection[int]:
        for matcher, mask in zip(matchers, masks, strict=True):
            assert isinstance(matcher, OutlinesMatcher)
            matcher.library.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)
        return ()


class OutlinesCompiled:
    def __init__(self, index: outlines_core.Index, end_id: int) -> None:
        self._index, self._end_id = index, end_id

    def matcher(self, ends: Collection[int] = ()) -> Matcher:
        return OutlinesMatcher(outlines_core.Guide(self._index), self._end_id)


class OutlinesMatcher:
    def __init__(self, library: outlines_core.Guide, end_id: int) -> None:
        self.library = library
        self._end_id = end_id
        self._error: str | None = None

    def settle(self, likeliest: int) -> int:
        if likeliest < 0:
            return UNSETTLED
        try:
            self.library.advance(likeliest, return_tokens=False)
        except ValueError:
            return UNSETTLED
        return likeliest

    def accept(self, token_id: int) -> None:
        try:
            self.library.advance(token_id, return_tokens=False)
        except ValueError:
            self._error = f"token {token_id} does not fit"

    def forced(self) -> list[int]:
        return []

    def finished(self) -> bool:
        return bool(self.library.is_finished() and self.library.get_tokens() == [self._end_id])

    def standing(self) -> Standing:
        return OVER if self.finished() else OPEN

    def error(self) -> str | None:
        return self._error
