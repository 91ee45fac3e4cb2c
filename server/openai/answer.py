"""Assembles answers in OpenAI's form, whole or as a stream, from what the choices of an API render."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response

from sgl.engine.api import GenerateRequest, Generation
from sgl.engine.api.native import as_json
from sgl.engine.api.receipt import receipt_fields
from sgl.engine.base.errors import SglError
from sgl.server.errors import JsonResponse
from sgl.server.openai.protocol import StreamOptions
from sgl.server.sse import EventStream
from sgl.server.state import ServerState

_LONG_TEXT = 2**16
"""Answers of more characters, together, are taken apart beside the event loop."""


class Choice(Protocol):
    """One output of a request; keeps what a stream of it needs to remember."""

    def whole(self, item: Generation) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""

    def chunks(self, item: Generation) -> Iterable[dict[str, Any]]:
        """What one item adds to a streamed choice."""


class Usage:
    """Counts tokens as items come. A prompt counts once, however many outputs it has."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._outputs: dict[tuple[int, int], int] = {}

    def note(self, position: int, item: Generation) -> None:
        """Takes note of an item of the prompt at ``position``."""
        num_prompt, num_cached = self._prompts.get(position, (0, item.cached_tokens))
        # of several outputs all but the first find the prompt cached, by the first: that is no hit
        self._prompts[position] = max(num_prompt, item.prompt_tokens), min(num_cached, item.cached_tokens)
        self._outputs[position, item.index] = item.completion_tokens

    def render(self, num_reasoning: int, with_cached: bool) -> dict[str, Any]:
        """OpenAI's ``usage`` of what came so far."""
        num_prompt = sum(prompt for prompt, _ in self._prompts.values())
        num_completion = sum(self._outputs.values())
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
            "completion_tokens_details": {"reasoning_tokens": num_reasoning},
        }
        if with_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": sum(cached for _, cached in self._prompts.values())}
        return usage


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
        stream_options: which usage a stream tells.
        num_best: how many outputs of each prompt are shown, those of the highest mean logprob first; None for all.
        num_reasoning: counts the tokens so far that were no part of the answers proper.
    """

    state: ServerState
    id: str
    model: str
    objects: tuple[str, str]
    requests: list[GenerateRequest]
    make_choice: Callable[[int, int], Choice]
    names: Mapping[str, str]
    warnings: list[str]
    stream_options: StreamOptions | None = None
    num_best: int | None = None
    num_reasoning: Callable[[], int] = lambda: 0
    _usage: Usage = field(default_factory=Usage)

    async def respond(self, stream: bool) -> Response:
        """Generates; the response carries everything, or will as it comes."""
        if stream:
            return EventStream(self._events())
        items: list[dict[int, Generation]] = [{} for _ in self.requests]
        async with self._generations() as generations:
            async for position, item in generations:
                self._note(position, item)
                items[position][item.index] = item
        shown = [(position, item) for position, found in enumerate(items) for item in self._best(found)]
        is_long = sum(len(item.text) for _, item in shown) > _LONG_TEXT
        choices = await asyncio.to_thread(self._whole, shown) if is_long else self._whole(shown)
        return JsonResponse({**self._head(0), "choices": choices, "usage": self._count(), **self._warned()})

    def _whole(self, shown: Iterable[tuple[int, Generation]]) -> list[dict[str, Any]]:
        return [
            {**self.make_choice(position, index).whole(item), **self._extras(position, item)}
            for index, (position, item) in enumerate(shown)
        ]

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        options = self.stream_options or StreamOptions()
        head, choices = self._head(1), dict[int, Choice]()
        async with self._generations() as generations:
            async for position, item in generations:
                self._note(position, item)
                index = position * self.requests[0].n + item.index
                if index not in choices:
                    choices[index] = self.make_choice(position, index)
                for chunk in choices[index].chunks(item):
                    extras = self._extras(position, item) if chunk.get("finish_reason") else {}
                    chunk_usage = self._chunk_usage(options)
                    yield {**head, "choices": [{**chunk, **extras}], **chunk_usage, **self._warned()}
        if options.include_usage:
            yield {**head, "choices": [], "usage": self._count()}

    @asynccontextmanager
    async def _generations(self) -> AsyncIterator[AsyncIterator[tuple[int, Generation]]]:
        with naming(self.names):
            async with aclosing(self.state.generate(self.requests)) as generations:
                yield generations

    def _note(self, position: int, item: Generation) -> None:
        self._usage.note(position, item)
        self.warnings += item.warnings

    def _best(self, items: Mapping[int, Generation]) -> Iterable[Generation]:
        """The outputs of a prompt that are shown, in the order in which they are shown."""
        ordered = [items[index] for index in sorted(items)]
        if self.num_best is None or self.num_best == len(ordered):
            return ordered
        return sorted(ordered, key=_mean_logprob, reverse=True)[: self.num_best]

    def _extras(self, position: int, item: Generation) -> dict[str, Any]:
        """The last hidden state of a finished output and its receipt, where they were asked for."""
        extras: dict[str, Any] = {}
        if self.requests[position].return_hidden_states:
            extras["hidden_states"] = next(iter(as_json(item.hidden_states[-1:])), [])
        receipt = receipt_fields(item)
        return {**extras, **({"sgl": receipt} if receipt else {})}

    def _warned(self) -> dict[str, Any]:
        """The warnings that were not shown yet."""
        if not self.warnings:
            return {}
        shown, self.warnings = list(dict.fromkeys(self.warnings)), []
        return {"warnings": shown}

    def _head(self, form: int) -> dict[str, Any]:
        return {"id": self.id, "object": self.objects[form], "created": int(time.time()), "model": self.model}

    def _chunk_usage(self, options: StreamOptions) -> dict[str, Any]:
        if options.continuous_usage_stats:
            return {"usage": self._count()}
        return {"usage": None} if options.include_usage else {}

    def _count(self) -> dict[str, Any]:
        return self._usage.render(self.num_reasoning(), self.state.config.serve.enable_cache_report)


def _mean_logprob(item: Generation) -> float:
    """Of the output's tokens; an output without any is as likely as can be."""
    logprobs = [entry.logprob or 0.0 for entry in item.all_output_logprobs]
    return sum(logprobs) / max(len(logprobs), 1)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name fields as this API does; of a path in a field, the field that holds it."""
    try:
        yield
    except SglError as error:
        for name in filter(lambda name: "_" in name, names):  # a field's name for certain, not a word of the sentence
            error.message = error.message.replace(name, names[name])
        field = re.split(r"[.\[]", error.param or "", maxsplit=1)[0]
        error.param = names.get(field, error.param)
        raise


def finish_fields(item: Generation) -> dict[str, Any]:
    """``finish_reason`` and ``matched_stop`` of a choice, null while it goes on."""
    if item.finish_reason is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": item.finish_reason.kind, "matched_stop": item.finish_reason.matched}
