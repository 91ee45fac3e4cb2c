"""What the rest of the engine knows of a grammar library."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, HostDraws
from sgl.engine.core.grammar import Standing
from sgl.engine.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BackendName = Literal["native", "llguidance", "xgrammar", "outlines"]
Kind = Literal["json_schema", "regex", "ebnf", "structural_tag"]

Masks: TypeAlias = "NDArray[np.int32]"
"""[N, words]: one bit per token and one for `Vocabulary.end_id`, which says that the output may end here."""

SEPARATOR_BLANK = "[ ]?"
"""What may follow a comma or a colon in JSON: as much as Python and OpenAI write, and an end to it."""


@dataclass(frozen=True)
class Options:
    """Whitespace in JSON: a regular expression for what may stand between two symbols, or None for the default."""

    whitespace: str | None = None


class Matcher(Protocol):
    """Progress of one output. After an error every method but `error` may say anything."""

    def accept(self, token_id: int, /) -> object:
        """Advances over a token."""

    def forced(self) -> list[int]:
        """The tokens that come next in any case. The masks on the way must allow these and no others.

        Asked for at any time, so an answer that costs something is kept until the state changes.
        """

    def finished(self) -> bool:
        """Whether nothing but the end may follow."""

    def standing(self) -> Standing:
        """What is known soonest of `finished` and `forced`."""

    def error(self) -> str | None:
        """Why there is no mask."""


class Compiled(Protocol):
    """A compiled grammar, for any number of outputs."""

    def matcher(self, ends: Collection[int] = ()) -> Matcher:
        """At the beginning of an output; ``ends`` are the model's tokens that end one, for backends that choose."""


class Backend(Protocol):
    """A grammar library with one vocabulary.

    ``settles_ends`` says whether its matchers judge the tokens that end an output as well.
    """

    settles_ends: bool

    def compile(self, grammar: Grammar) -> Compiled:
        """
        Raises:
            SglError: 400; the library refuses the grammar.
        """

    def settle(self, matchers: Sequence[Matcher], draws: HostDraws) -> int:
        """Advances each over the likeliest token if its mask allows it, or over the only one that it allows.

        As `Masks.settle`: where that would take a mask nothing has changed, but for a backend to whom masks come cheap.
        """

    def advance(self, matchers: Sequence[Matcher], draws: HostDraws) -> None:
        """Goes on with the tokens that were drawn from logits which `settle` has limited."""

    def fill(self, matchers: Sequence[Matcher], masks: Masks) -> Collection[int]:
        """Writes a row for each matcher, the end alone after an error; without the GIL where the library can.

        Returns the rows that would take more work than is left to this call, and are to be asked for again.
        """


class Settling(Protocol):
    def settle(self, likeliest: int, /) -> int:
        """Advances over a token if the mask allows it, or over the only one that it allows; `UNSETTLED` if neither."""


def settle_each(matchers: Sequence[Settling], draws: HostDraws) -> int:
    """`Backend.settle` for libraries that are asked about one output at a time."""
    tokens, left = draws.token_ids, 0
    for matcher, draw in zip(matchers, draws.draws, strict=True):
        tokens[draw] = matcher.settle(tokens[draw])
        left += tokens[draw] < 0
    return left


def refusal(grammar: Grammar, reason: object) -> SglError:
    """The sentence about a grammar that a library does not take."""
    first, *others = str(reason).strip().splitlines() or ["no reason given"]
    if others and first.endswith(":"):  # what is wrong stands below a picture of where
        first = f"{first} {others[-1]}"
    message = f"The {grammar.kind} cannot be compiled: {' '.join(first.split()):.300}"
    return SglError(message.rstrip(".") + ".", code="invalid_grammar", param=grammar.kind)


def open_backend(name: BackendName, vocabulary: Vocabulary, options: Options) -> Backend:
    """Loads a library, which takes up to seconds.

    Raises:
        SglError: 400; it is not installed.
    """
    try:
        if name == "native":
            from sgl.engine.grammar.backends.native import NativeBackend

            return NativeBackend(vocabulary)
        if name == "llguidance":
            from sgl.engine.grammar.backends.llguidance import GuidanceBackend

            return GuidanceBackend(vocabulary, options)
        if name == "xgrammar":
            from sgl.engine.grammar.backends.xgrammar import XGrammarBackend

            return XGrammarBackend(vocabulary, options)
        from sgl.engine.grammar.backends.outlines import OutlinesBackend

        return OutlinesBackend(vocabulary, options)
    except ImportError as error:
        message = f"The grammar backend {name} needs the package {error.name}, which sgl[grammar] installs."
        raise SglError(message, code="missing_package") from None
