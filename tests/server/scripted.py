"""A server that answers with the last message's own text, read in a small format of thoughts and calls."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sgl.engine.base.errors import EngineDiedError
from sgl.engine.text.parsers import OutputParser
from sgl.engine.text.parsers.feed import Feed, Step
from sgl.engine.text.parsers.output import Writer
from sgl.engine.text.template import ChatTemplate
from sgl.server.anthropic import routes as messages
from sgl.server.openai import conversation
from sgl.server.openai.conversation import Conversation
from sgl.server.openai.responses import prompt as responses
from tests.server.served import Served

LAST_MESSAGE = ChatTemplate({"default": "{{ messages[-1].content }}"})

INTERVALS = [1, 2, 3, 7, 1000]
SAMPLES = {
    "text": "just größer text, 日本 and \U0001f600.",
    "thought": "(ponder über it)The answer.",
    "call": '~f|{"x": [1, 2.5, "größer"], "y": {"z": null}}~',
    "all": '(first)Let me see.~f|{"x": 1}~~g|{}~',
    "mixed": '(a)b(c)~f|{"x": "y"}~ d ~g|{"q": true}~ e',
    "no arguments": "~f|~",
    "cut thought": "(never ends",
    "cut call": '~f|{"x": [1, {"y": "zz',
    "empty": " ",
}


def small_format(feed: Feed, writer: Writer) -> Step[None]:
    """``(thought)``, ``~name|arguments~``; everything else is content."""
    while (marker := (yield from feed.until(["(", "~"], writer.content))) is not None:
        writer.border()
        if marker == "(":
            start = feed.position - 1
            closed = yield from feed.until([")"], writer.reasoning)
            writer.border() if closed else writer.finish_reasoning()
            writer.end_reasoning(start, feed.position)
        else:
            name: list[str] = []
            yield from feed.until(["|"], name.append)
            writer.start("".join(name))
            yield from feed.until(["~"], writer.arguments)
    writer.finish_content()


class _Forgetful(set[Any]):
    """Caches no prompt, so that a second answer is as the first."""

    def add(self, item: Any) -> None:
        pass


@pytest.fixture
def scripted(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Such a server."""

    async def converse(*arguments: Any) -> Conversation:
        found = await conversation.converse(*arguments)
        return dataclasses.replace(found, new_parser=lambda: OutputParser(small_format))

    for module in (responses, messages):
        monkeypatch.setattr(module, "converse", converse)
    served.engine.template = LAST_MESSAGE
    served.client.cache = _Forgetful()
    yield served


def cut_streams(served: Served, interval: int) -> None:
    """Makes items of a stream have at least so many tokens, and the model so slow that they hardly have more."""
    served.client.delay_s = 0.0005
    served.engine.config = served.engine.config.replace({"schedule.stream_interval": (interval, "the test")})


def after_three_tokens(served: Served, do: Callable[[], object]) -> None:
    """Has something done, on the engine's thread, once an answer has three tokens; it gets no more of them."""
    send, pending = served.client._on_message, [do]

    def watch(message: Any) -> None:
        send(message)
        if pending and served.client.running and max(done for _, done in served.client.running.values()) == 3:
            pending.pop()()

    served.client.limit = lambda: 3
    served.client._on_message = watch


def die_in_a_stream(served: Served) -> None:
    """Has the engine die once an answer has three tokens and its client an event."""

    def die() -> None:
        assert served.has_answered.wait(60)
        served.client.die(EngineDiedError("killed"))

    after_three_tokens(served, die)


def abort_all(served: Served) -> None:
    """Ends all answers, as `/abort_request` does."""
    loop = served.engine._loop
    assert loop is not None
    for rid in list(served.engine._active):
        asyncio.run_coroutine_threadsafe(served.engine.abort(rid), loop)


def split(text: str, rng: random.Random) -> list[str]:
    """The text in random pieces."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
