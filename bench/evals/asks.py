"""What a model is asked and what it says, wherever it runs. Data and one protocol; sends nothing and judges nothing."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """Something to answer: a text to go on with, or a conversation whose next turn is wanted.

    Args:
        prompt: text or token ids; or
        messages: in OpenAI's form.
        tools: on offer in a conversation, in OpenAI's form.
        schema: the JSON schema that the answer has to follow; the model is held to it.
    """

    prompt: str | tuple[int, ...] = ""
    messages: tuple[Json, ...] = ()
    tools: tuple[Json, ...] = ()
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    schema: Json | None = None

    def to_dict(self) -> Json:
        """Everything that the answer depends on."""
        return asdict(self)


@dataclass(frozen=True)
class Passage:
    """Something to read: how likely is each of its tokens from ``start`` on?"""

    token_ids: tuple[int, ...]
    start: int = 1

    def to_dict(self) -> Json:
        """Everything that the scores depend on."""
        return asdict(self)


@dataclass(frozen=True)
class Call:
    """A tool call; ``arguments`` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        finish: stop, length or tool_calls.
        calls: of tools, where some were on offer and the model's way to call them is known.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: tuple[Call, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Scores:
    """Log probabilities of a passage's tokens, and whether each is the likeliest one at its place."""

    logprobs: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Identity:
    """Which model answers, as far as that is known: equal identities give equal answers.

    Args:
        facts: path or name, fingerprint of the weights, precision.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)


class Model(Protocol):
    """A model, here or elsewhere. Its coroutines raise `SglError`; where that is retryable, so is the ask."""

    @property
    def identity(self) -> Identity: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            ConfigError: it is not known here.
        """

    @property
    def template(self) -> ChatTemplate:
        """The chat template; false if there is none.

        Raises:
            ConfigError: it is not known here.
        """

    @property
    def context_len(self) -> int | None:
        """Tokens of prompt and answer together; None if unknown."""

    async def answer(self, ask: Ask) -> Reply: ...

    async def score(self, passage: Passage) -> Scores: ...

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for it, in the model's own event loop; Ctrl-C cancels it."""

    def close(self) -> None: ...
