"""Assembles answers in OpenAI's form, whole or as a stream, from what the choices of an API render."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response

from sgl.engine.api import GenerateRequest, Generation
from sgl.engine.base.errors import SglError
from sgl.server.errors import JsonResponse
from sgl.server.sse import EventStream
from sgl.server.state import ServerState


class Choice(Protocol):
    """One output of a request; keeps what a stream of it needs to remember."""

    def whole(self, item: Generation) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""

    def chunks(self, item: Generation) -> Iterable[dict[str, Any]]:
        """What one item adds to a streamed choice."""


@dataclass
class Answer:
    """One answer to be.

    Args:
        id: shown to the client.
        model: the name shown to the client.
        objects: the ``object`` of a whole answer and of a chunk.
        requests: one for each prompt, all with the same ``n``.
        make_choice: by (prompt, choice index).
        names: what this API calls fields of the engine's requests.
        warnings: about fields that had no effect.
    """

    state: ServerState
    id: str
    model: str
    objects: tuple[str, str]
    requests: list[GenerateRequest]
    make_choice: Callable[[int, int], Choice]
    names: Mapping[str, str]
    warnings: list[str]
    include_usage: bool = False
    _choices: dict[int, Choice] = field(default_factory=dict)
    _last: dict[int, tuple[int, Generation]] = field(default_factory=dict)  # item of each choice

    async def respond(self, stream: bool) -> Response:
        """Generates; the response carries everything, or will as it comes."""
        if stream:
            return EventStream(self._events())
        choices: dict[int, dict[str, Any]] = {}
        async with self._generations() as generations:
            async for position, item in generations:
                index, choice = self._place(position, item)
                choices[index] = choice.whole(item)
        answer = {**self._head(0), "choices": [choices[index] for index in sorted(choices)], "usage": self._usage()}
        return JsonResponse({**answer, **self._warned()})

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        head = self._head(1)
        extra: dict[str, Any] = {"usage": None} if self.include_usage else {}
        async with self._generations() as generations:
            async for position, item in generations:
                _, choice = self._place(position, item)
                for chunk in choice.chunks(item):
                    yield {**head, "choices": [chunk], **extra, **self._warned()}
        if self.include_usage:
            yield {**head, "choices": [], "usage": self._usage()}

    @asynccontextmanager
    async def _generations(self) -> AsyncIterator[AsyncGenerator[tuple[int, Generation], None]]:
        with _naming(self.names):
            async with aclosing(self.state.generate(self.requests)) as generations:
                yield generations

    def _place(self, position: int, item: Generation) -> tuple[int, Choice]:
        """Takes note of an item; the index of its choice, and the choice."""
        index = position * self.requests[0].n + item.index
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = self.make_choice(position, index)
            self.warnings += item.warnings
        self._last[index] = (position, item)
        return index, choice

    def _warned(self) -> dict[str, Any]:
        """The warnings that were not shown yet."""
        if not self.warnings:
            return {}
        shown, self.warnings = list(dict.fromkeys(self.warnings)), []
        return {"warnings": shown}

    def _head(self, form: int) -> dict[str, Any]:
        return {"id": self.id, "object": self.objects[form], "created": int(time.time()), "model": self.model}

    def _usage(self) -> dict[str, Any]:
        """A prompt counts once, however many outputs it has."""
        prompts = {position: (item.prompt_tokens, item.cached_tokens) for position, item in self._last.values()}
        num_prompt = sum(prompt for prompt, _ in prompts.values())
        num_completion = sum(item.completion_tokens for _, item in self._last.values())
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
        }
        if self.state.config.serve.enable_cache_report:
            usage["prompt_tokens_details"] = {"cached_tokens": sum(cached for _, cached in prompts.values())}
        return usage


@contextmanager
def _naming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name fields as this API does."""
    try:
        yield
    except SglError as error:
        message = error.message
        for name in filter(lambda name: "_" in name, names):  # a field's name for certain, not a word of the sentence
            message = message.replace(name, names[name])
        param = names.get(error.param or "", error.param)
        raise SglError(message, code=error.code, status=error.status, param=param, retryable=error.retryable) from error


def finish_fields(item: Generation) -> dict[str, Any]:
    """``finish_reason`` and ``matched_stop`` of a choice, null while it goes on."""
    if item.finish_reason is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": item.finish_reason.kind, "matched_stop": item.finish_reason.matched}
