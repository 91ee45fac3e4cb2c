"""Regular expressions, and JSON schemas written as rules of them, by our own automata (kernels/cpu/grammar.h)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, HostDraws
from sgl.engine.core.grammar import Standing
from sgl.engine.grammar.backend import Compiled, Masks, Matcher, refusal
from sgl.engine.grammar.vocabulary import Vocabulary
from sgl.kernels.cpu import grammar as automata

_OVER, _FORCED, _FAILED, _DEFERRED = 1, 2, 4, 8
"""What the library says of a state, see grammar_automaton.h; the first two are what `Standing` calls so."""

_TRIAL_TOKENS = 16
_MAX_FORCED = 256
_KEPT_TEXTS = 4096
_REASON_BYTES = 256


class NativeBackend:
    """
    Raises:
        SglError: 400; the library cannot be built here.
    """

    settles_ends = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        reason = automata.missing()
        if reason:
            raise SglError(f"The grammar backend native cannot be used: {reason}.", code="missing_package")
        self._library = automata.library()
        usual = lru_cache(_KEPT_TEXTS)(vocabulary.usual_tokens)

        def first_usual(text: int, size: int) -> int:
            tokens = usual(ctypes.string_at(text, size))
            return tokens[0] if tokens else -1

        self._first_usual = automata.Usual(first_usual)  # which must live as long as it can be called
        begins = np.fromiter(accumulate(map(len, vocabulary.pieces), initial=0), np.int64)
        classes = _classes()
        places = (ctypes.c_void_p * len(classes))(*(ranges.ctypes.data for ranges in classes))
        counts = (ctypes.c_int64 * len(classes))(*(len(ranges) for ranges in classes))
        self._settle, self._advance = self._library.sgl_matchers_settle, self._library.sgl_matchers_advance
        self._batch = _Batch((), ())
        self.forced = (ctypes.c_int32 * _MAX_FORCED)()
        self.pointer = self._library.sgl_vocabulary_new(
            *(b"".join(vocabulary.pieces), begins.ctypes.data, len(vocabulary.pieces)),
            *(places, counts, self._first_usual),
        )

    def __del__(self) -> None:
        if "pointer" in self.__dict__:
            self._library.sgl_vocabulary_free(self.pointer)

    def compile(self, grammar: Grammar) -> Compiled:
        """A regular expression, or the rules of a JSON schema (`lowering.rules_of`)."""
        source = grammar.source.encode(errors="replace")
        reason = ctypes.create_string_buffer(_REASON_BYTES)
        found = self._library.sgl_grammar_new(
            *(self.pointer, source, len(source), grammar.kind != "regex"),
            *(_TRIAL_TOKENS, reason, _REASON_BYTES),
        )
        if not found:
            raise refusal(grammar, reason.value.decode())
        return NativeCompiled(self, found)

    def fill(self, matchers: Sequence[Matcher], masks: Masks) -> Collection[int]:
        rows = np.array([matcher.pointer for matcher in cast(Sequence[NativeMatcher], matchers)], np.uint64)
        flags = bytearray(len(rows))
        flags_at = (ctypes.c_uint8 * len(rows)).from_buffer(flags)
        self._library.sgl_matchers_fill(rows.ctypes.data, len(rows), masks.ctypes.data, flags_at)
        return [row for row, found in enumerate(flags) if found & _DEFERRED]

    def settle(self, matchers: Sequence[Matcher], draws: HostDraws) -> int:
        batch = self._batch_of(matchers, draws)
        left: int = self._settle(*batch.place, draws.token_ids, draws.logits, draws.width, batch.flags_at)
        batch.tell()
        return left

    def advance(self, matchers: Sequence[Matcher], draws: HostDraws) -> None:
        batch = self._batch_of(matchers, draws)
        self._advance(*batch.place, draws.token_ids, batch.flags_at)
        batch.tell()

    def _batch_of(self, matchers: Sequence[Matcher], draws: HostDraws) -> _Batch:
        if self._batch.matchers != matchers or self._batch.draws != draws.draws:  # most steps are about the same
            self._batch = _Batch(cast(Sequence[NativeMatcher], matchers), draws.draws)
        return self._batch


class NativeCompiled:
    def __init__(self, backend: NativeBackend, pointer: int) -> None:
        self.backend, self.pointer = backend, pointer
        self.library = backend._library

    def __del__(self) -> None:
        self.library.sgl_grammar_free(self.pointer)

    def matcher(self, ends: Collection[int] = ()) -> Matcher:
        return NativeMatcher(self, np.array(sorted(ends), np.int32))

    def kept_bytes(self) -> int:
        """Of what has been found out so far, which is bounded."""
        return int(self.library.sgl_grammar_kept_bytes(self.pointer))


class NativeMatcher:
    __slots__ = ("_compiled", "_library", "flags", "pointer")

    def __init__(self, compiled: NativeCompiled, ends: NDArray[np.int32]) -> None:
        self._compiled = compiled  # which must live as long
        self._library = compiled.library
        self.pointer: int = self._library.sgl_matcher_new(compiled.pointer, ends.ctypes.data, len(ends))
        if not self.pointer:
            raise SglError("There is no memory for another output of this grammar.", code="out_of_memory", status=503)
        self.flags: int = self._library.sgl_matcher_flags(self.pointer)

    def __del__(self) -> None:
        self._library.sgl_matcher_free(self.pointer)

    def accept(self, token_id: int) -> None:
        self.flags = self._library.sgl_matcher_accept(self.pointer, token_id)

    def forced(self) -> list[int]:
        if not self.flags & _FORCED:
            return []
        tokens = self._compiled.backend.forced
        found: list[int] = tokens[: self._library.sgl_matcher_forced(self.pointer, tokens, _MAX_FORCED)]
        return found

    def finished(self) -> bool:
        return bool(self.flags & _OVER)

    def standing(self) -> Standing:
        return cast(Standing, self.flags & (_OVER | _FORCED))

    def error(self) -> str | None:
        """Asks the library: what failed when masks were filled is not in `flags`."""
        has_failed = self._library.sgl_matcher_flags(self.pointer) & _FAILED
        return "a token does not fit, none can, or a mask takes too long" if has_failed else None


class _Batch:
    """Memory for what the library hears and says of some matchers."""

    def __init__(self, matchers: Sequence[NativeMatcher], draws: Sequence[int]) -> None:
        self.matchers, self.draws = list(matchers), list(draws)
        pointers = (ctypes.c_void_p * len(matchers))(*(matcher.pointer for matcher in matchers))
        self.place = (pointers, len(matchers), (ctypes.c_int64 * len(matchers))(*draws))
        self._flags = bytearray(len(matchers))
        self.flags_at = (ctypes.c_uint8 * len(matchers)).from_buffer(self._flags)

    def tell(self) -> None:
        for matcher, flags in zip(self.matchers, self._flags, strict=True):
            matcher.flags = flags


@cache
def _classes() -> tuple[NDArray[np.int32], ...]:
    r"""The code points of \d, \s and \w, [ranges, 2]: what Python means by them."""
    points = np.arange(0x110000, dtype="<u4")
    text = points.tobytes().decode("utf-32-le", "surrogatepass")
    return tuple(
        np.array([(found.start(), found.end() - 1) for found in re.finditer(f"{name}+", text)], np.int32)
        for name in (r"\d", r"\s", r"\w")
    )
