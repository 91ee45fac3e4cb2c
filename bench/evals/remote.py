"""A model under test behind a URL, by OpenAI's API or SGLang's own; judges nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

import httpx

from sgl.bench.evals.asks import Ask, Call, Identity, Json, Passage, Reply, Scores
from sgl.bench.serving import Target, headers, refusal, unreachable
from sgl.bench.serving import ask as facts_of
from sgl.engine.base import hub
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.text.template import ChatTemplate, load_template
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer

T = TypeVar("T")

_TIMEOUT = httpx.Timeout(10.0, read=3600.0, pool=None)
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be others the next time."""


class Remote:
    """A server. Make it with `connect`.

    Args:
        tells: what it says of its model.
    """

    def __init__(self, target: Target, name: str, tells: dict[str, str]) -> None:
        self._target = target
        self._name = name
        self._tells = tells
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(
            base_url=target.base, headers=headers(target), timeout=_TIMEOUT, limits=_NO_LIMITS
        )

    @staticmethod
    def connect(url: str, model: str = "", tokenizer: str = "", api_key: str = "") -> Remote:
        """Asks the server for its model.

        Args:
            model: its name there; empty for the first that the server lists.
            tokenizer: directory or Hub id; empty for what the server says.

        Raises:
            ConfigError: not a URL, or the server does not say what model it has.
            SglError: no server there, or it does not let us in.
        """
        target = Target("openai", url, model, tokenizer, api_key)
        target.check()
        tells = facts_of(target).model
        name = model or tells.get("model", "")
        if not name:
            raise ConfigError(f"{target.base} does not say what model it has; pass --model.", param="--model")
        return Remote(target, name, tells)

    @property
    def identity(self) -> Identity:
        return Identity(self._name, {"url": self._target.base, **self._tells})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        source = self._target.tokenizer or self._tells.get("tokenizer_path", "") or self._name
        try:
            return load_tokenizer(hub.locate(source, hub.TOKENIZER_FILES))
        except SglError as error:
            message = f"This task needs the model's tokenizer, and that of {source} cannot be loaded here; pass "
            raise ConfigError(f"{message}--tokenizer. ({error.message})", param="--tokenizer") from None

    @cached_property
    def template(self) -> ChatTemplate:
        return load_template(self.tokenizer)

    @property
    def context_len(self) -> int | None:
        return None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for it; Ctrl-C cancels it, and so closes its connections."""
        return self._runner.run(coroutine)

    async def answer(self, ask: Ask) -> Reply:
        """
        Raises:
            SglError: the server refuses, does not answer, or says something else than the API has.
        """
        options = {
            "model": self._name,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            **({"stop": list(ask.stop)} if ask.stop else {}),
            **({"seed": ask.seed} if ask.seed is not None else {}),
        }
        if ask.schema is not None:
            form = {"name": "answer", "schema": ask.schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        if not ask.messages:
            prompt = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
            return _completion(await self._post("/v1/completions", {**options, "prompt": prompt}))
        tools = {"tools": list(ask.tools)} if ask.tools else {}
        body = {**options, "messages": list(ask.messages), **tools}
        return _chat(await self._post("/v1/chat/completions", body))

    async def score(self, passage: Passage) -> Scores:
        """
        Raises:
            SglError: as `answer`, or the server gives no log probabilities of prompts.
        """
        ids, num_wanted = list(passage.token_ids), len(passage.token_ids) - passage.start
        if "model_path" in self._tells:  # SGLang's API, which says it without generating anything
            sampling = {"max_new_tokens": 0, "temperature": 0.0}
            # From one token further ahead: whether the first of a range is scored is told by versions differently.
            wants = {"return_logprob": True, "logprob_start_len": passage.start - 1, "top_logprobs_num": 1}
            return _native_scores(
                await self._post("/generate", {"input_ids": ids, "sampling_params": sampling, **wants}), num_wanted
            )
        body = {"model": self._name, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        return _echoed_scores(await self._post("/v1/completions", body), passage)

    def close(self) -> None:
        """Closes the connections."""
        self.run(self._client.aclose())
        self._runner.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _post(self, path: str, body: Json) -> Json:
        try:
            response = await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise SglError(unreachable(self._target.base, error), status=503, retryable=True) from None
        status = response.status_code
        if status != 200:
            raise SglError(refusal(status, response.content), status=status, retryable=status in _PASSING)
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("error"):
            raise SglError(f"{path} answered with something else than the API has: {response.text[:120]}", status=502)
        return content


def _unread(content: Json) -> SglError:
    return SglError(f"The server's answer lacks fields of the API: {str(content)[:160]}", status=502)


def _completion(content: Json) -> Reply:
    try:
        choice, usage = content["choices"][0], content.get("usage") or {}
        return Reply(choice["text"], str(choice["finish_reason"] or "stop"), *_counts(usage))
    except (KeyError, IndexError, TypeError):
        raise _unread(content) from None


def _chat(content: Json) -> Reply:
    try:
        choice, usage = content["choices"][0], content.get("usage") or {}
        message = choice["message"]
        calls = tuple(
            Call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
        )
        return Reply(
            message.get("content") or "",
            str(choice["finish_reason"] or "stop"),
            *_counts(usage),
            calls,
            message.get("reasoning_content") or "",
        )
    except (KeyError, IndexError, TypeError):
        raise _unread(content) from None


def _counts(usage: Json) -> tuple[int, int]:
    return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0


def _native_scores(content: Json, num_wanted: int) -> Scores:
    try:
        meta = content["meta_info"]
        found = meta["input_token_logprobs"][-num_wanted:]
        tops = meta["input_top_logprobs"][-num_wanted:]
        values = tuple(float(entry[0]) for entry in found)
        greedy = tuple(value >= top[0][0] for value, top in zip(values, tops, strict=True))
        num_tokens = meta["prompt_tokens"]
    except (KeyError, IndexError, TypeError, ValueError):
        raise _unread(content) from None
    return _complete(Scores(values, greedy, num_tokens), num_wanted)


def _echoed_scores(content: Json, passage: Passage) -> Scores:
    span = slice(passage.start, len(passage.token_ids))
    try:
        told = content["choices"][0]["logprobs"]
        values = tuple(float(value) for value in told["token_logprobs"][span])
        tops = told["top_logprobs"][span]
        greedy = tuple(value >= max(top.values()) for value, top in zip(values, tops, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        message = "The server gives no log probabilities of prompts (echo with logprobs), which this task needs."
        raise SglError(message, status=502) from None
    return _complete(Scores(values, greedy, len(passage.token_ids)), span.stop - span.start)


def _complete(scores: Scores, num_wanted: int) -> Scores:
    if len(scores.logprobs) != num_wanted:
        message = f"The server scored {len(scores.logprobs)} of {num_wanted} tokens; it may have read another prompt."
        raise SglError(message, status=502)
    return scores
