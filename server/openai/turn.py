"""Reads the one answer of a conversation as it comes: parsed events, their logprobs, counts. Renders nothing."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from sgl.engine.api import Generation
from sgl.engine.base.types import TokenLogprob
from sgl.engine.text.detokenize import Detokenizer
from sgl.engine.text.parsers import Content, Event, OutputParser
from sgl.engine.text.tokenizer import Tokenizer
from sgl.server.openai.conversation import Conversation
from sgl.server.state import ServerState

_PIECE_CHARS = 2**16


@dataclass(frozen=True)
class Found:
    """What a parser found, with the logprobs of its tokens if it is content and they were asked for."""

    event: Event
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Step:
    """What one item of an answer brought; the last one has a reason to finish.

    Args:
        num_reasoning: tokens of reasoning in the whole answer, on the last step.
    """

    item: Generation
    found: list[Found] = field(default_factory=list)
    num_reasoning: int = 0


async def read_turn(state: ServerState, conversation: Conversation) -> AsyncGenerator[Step, None]:
    """The steps of the answer. Closing it aborts what is left.

    Raises:
        SglError: the request is refused, was aborted, or the engine gave it up.
    """
    request, tokenizer = conversation.request, state.engine.tokenizer
    parser = conversation.new_parser()
    aligned = None
    if request.return_logprob:
        request.stream = True  # to align a long answer at once would keep others waiting
        aligned = _Aligned(parser, tokenizer.detokenizer(request.skip_special_tokens))
    async with aclosing(state.generate([request], partial=False)) as items:
        async for _, item in items:
            finish = item.finish_reason
            found = aligned.push(item) if aligned else list(map(Found, parser.push(item.delta)))
            if finish is None:
                yield Step(item, found)
                continue
            found += aligned.finish() if aligned else map(Found, parser.finish())
            skip = request.skip_special_tokens
            num_reasoning = count_within(item.output_ids, tokenizer.detokenizer(skip), parser.reasoning_spans)
            yield Step(item, found, num_reasoning)


def reworded(warnings: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Warnings that name fields as another API does."""
    known = re.compile(r"`({})`".format("|".join(names)))
    return [known.sub(lambda found: f"`{names[found[1]]}`", warning) for warning in warnings]


def count_tokens(tokenizer: Tokenizer, prompt: str) -> int:
    """The tokens of a rendered prompt; of a very long one, of its pieces, so that they take little memory."""
    pieces = (prompt[start : start + _PIECE_CHARS] for start in range(0, len(prompt), _PIECE_CHARS))
    return sum(len(tokenizer.encode(piece, add_special_tokens=False)) for piece in pieces)


def count_within(token_ids: Sequence[int], detokenizer: Detokenizer, spans: Sequence[tuple[int, int]]) -> int:
    """How many tokens begin within stretches of the text."""
    if not spans:
        return 0
    count = position = 0
    for token_id in token_ids:
        count += any(start <= position < end for start, end in spans)
        position += len(detokenizer.push((token_id,)))
    return count


class _Aligned:
    """Finds the logprobs of content, which is only a part of the text that the tokens make.

    The parser gets one character at a time. So it is known where in the text a content ends, and what is found does not
    depend on how the answer came.
    """

    def __init__(self, parser: OutputParser, detokenizer: Detokenizer) -> None:
        self._parser = parser
        self._detokenizer = detokenizer
        self._tokens: deque[tuple[int, int, TokenLogprob]] = deque()  # where each begins and ends in the text
        self._num_known = 0  # characters of the tokens
        self._num_read = 0  # characters that the parser got

    def push(self, item: Generation) -> list[Found]:
        for entry in item.output_logprobs:
            start = self._num_known
            self._num_known += len(self._detokenizer.push((entry.token_id,)))
            self._tokens.append((start, self._num_known, entry))
        found: list[Found] = []
        for character in item.delta:
            self._num_read += 1
            for event in self._parser.push(character):
                self._add(found, event)
        return found

    def finish(self) -> list[Found]:
        found: list[Found] = []
        for event in self._parser.finish():
            self._add(found, event)
        return found

    def _add(self, found: list[Found], event: Event) -> None:
        """Takes in an event; joins contents that follow each other."""
        if not isinstance(event, Content):
            found.append(Found(event))
            return
        logprobs = self._take(self._num_read - len(event.text), self._num_read)
        before = found[-1] if found else None
        if before is not None and isinstance(before.event, Content):
            found[-1] = Found(Content(before.event.text + event.text), [*before.logprobs, *logprobs])
        else:
            found.append(Found(event, logprobs))

    def _take(self, start: int, end: int) -> list[TokenLogprob]:
        """The tokens of a stretch of text; those before it will not be asked for any more."""
        taken: list[TokenLogprob] = []
        while self._tokens and self._tokens[0][0] < end:
            token_start, token_end, entry = self._tokens.popleft()
            if token_start >= start or token_end > start:
                taken.append(entry)
        return taken
