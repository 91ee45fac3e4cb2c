"""A model under test that this process runs; judges nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sgl.bench.evals.asks import Ask, Identity, Passage, Reply, Scores
from sgl.bench.evals.speech import Speech, calls_of
from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base import env, sources
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.types import Grammar, SamplingParams, TokenLogprob
from sgl.engine.text.parsers.events import Message
from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

BLOCK_ELEMENTS = 1 << 22
"""Log probabilities that are in memory at once: 16 MiB."""

_FACTS = (
    *("model_path", "revision", "tokenizer_path", "chat_template", "dtype", "quantization", "kv_cache_dtype"),
    "json_model_override_args",
)
"""Options that change answers."""


class Local:
    """An engine in this process with an event loop of its own: `run` is for callers that have none."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._runner = asyncio.Runner()
        self._speech = Speech.of(engine)
        self._is_open = True
        self._fingerprint = ""

    @staticmethod
    def start(config: EngineConfig) -> Local:
        """Loads the model.

        Raises:
            ModelError: it cannot be loaded.
            ConfigError: an option does not fit, or the model does not generate text.
        """
        local = Local(AsyncEngine.start(config, in_process=True))
        if not local.engine.info.is_generation:
            local.close()
            raise ConfigError(f"{config.model.model_path} answers with vectors; there is nothing to evaluate.")
        local._fingerprint = local.run(local.engine.call("describe_weights"))["fingerprint"]
        return local

    @staticmethod
    def load(**options: Any) -> Local:
        """As `start`, by the server's options under SGLang's names; see `sgl.Engine`."""
        given = sources.merge(sources.from_call(options), sources.from_environment(env.all_variables(), compat=False))
        return Local.start(sources.configure(sources.with_demo_model(given)))

    @property
    def identity(self) -> Identity:
        flat = self.engine.config.to_flat_dict()
        facts = {name: str(flat[name]) for name in _FACTS if flat.get(name) not in (None, "", "{}")}
        return Identity(self.engine.config.model.model_path, {**facts, "fingerprint": self._fingerprint})

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def template(self) -> ChatTemplate:
        return self.engine.template

    @property
    def context_len(self) -> int | None:
        return min(self.engine.info.context_len, self.engine.info.max_total_num_tokens)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for it; Ctrl-C cancels it, and so aborts its requests."""
        return self._runner.run(coroutine)

    async def answer(self, ask: Ask) -> Reply:
        """
        Raises:
            SglError: the engine refuses or gives up.
        """
        prompt, request = self._request(ask)
        item = await self._last(request)
        message = self._speech.read(prompt, item.text, ask.tools) if prompt else Message(content=item.text)
        finish = "tool_calls" if message.calls else item.finish_reason.kind if item.finish_reason else "stop"
        counts = item.prompt_tokens, item.completion_tokens
        return Reply(message.content, finish, *counts, calls_of(message), message.reasoning)

    async def score(self, passage: Passage) -> Scores:
        """
        Raises:
            SglError: the engine refuses or gives up.
        """
        request = GenerateRequest(
            input_ids=passage.token_ids,
            sampling=SamplingParams(max_new_tokens=0),
            return_logprob=True,
            logprob_start_len=passage.start,
            top_logprobs_num=1,
        )
        item = await self._last(request)
        found = item.transcript.prompt_logprobs
        return Scores(
            tuple(_value(token) for token in found),
            tuple(_value(token) >= token.top[0][1] for token in found),
            item.prompt_tokens,
        )

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> AsyncIterator[np.ndarray]:
        """Log probabilities of all tokens behind each token of a sequence: blocks float32 ``[N, V]``, in order.

        Raises:
            SglError: the sequence is too long for the engine, or for its hidden states to be handed out.
        """
        import numpy as np

        request = GenerateRequest(
            input_ids=token_ids, sampling=SamplingParams(max_new_tokens=0), return_hidden_states=True
        )
        rows = (await self._last(request)).hidden_states
        size = max(BLOCK_ELEMENTS // self.engine.info.vocab_size, 1)
        for start in range(0, len(rows), size):
            found = await self.engine.call("logprobs", hidden=b"".join(rows[start : start + size]))
            yield np.frombuffer(found["logprobs"], np.float32).reshape(-1, self.engine.info.vocab_size)

    def close(self) -> None:
        """Frees the model."""
        if self._is_open:
            self._is_open = False
            self.run(self.aclose())
            self._runner.close()

    async def aclose(self) -> None:
        await self.engine.shutdown()

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, ask: Ask) -> tuple[str, GenerateRequest]:
        """The request, and the text of a conversation's prompt."""
        source = "" if ask.schema is None else msgspec.json.encode(ask.schema).decode()
        grammar = Grammar("json_schema", source) if source else None
        sampling = SamplingParams(max_new_tokens=ask.max_tokens, temperature=ask.temperature, grammar=grammar)
        request = GenerateRequest(sampling=sampling, stop=ask.stop, seed=ask.seed, fit_max_new_tokens=True)
        if not ask.messages:
            request.text = ask.prompt if isinstance(ask.prompt, str) else None
            request.input_ids = None if isinstance(ask.prompt, str) else ask.prompt
            return "", request
        template = self.template
        prompt = template.render(ask.messages, ask.tools or None)
        if ask.schema is not None:
            grammar = self._speech.grammar(prompt, ask.schema)
        request.text, request.add_special_tokens = prompt, False
        request.skip_special_tokens = not self._speech.shows_marks
        request.stop = (*ask.stop, *template.stop)
        request.sampling = msgspec.structs.replace(sampling, stop_token_ids=template.stop_token_ids, grammar=grammar)
        return prompt, request

    async def _last(self, request: GenerateRequest) -> Generation:
        async with aclosing(self.engine.generate(request)) as items:
            item = [item async for item in items][-1]
        if item.finish_reason is not None and item.finish_reason.kind == "abort":
            raise SglError(item.finish_reason.message or "The engine gave the request up.", status=503, retryable=True)
        return item


def _value(token: TokenLogprob) -> float:
    assert token.logprob is not None, "the first token of a sequence is not scored"
    return token.logprob
