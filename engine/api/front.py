"""The asynchronous engine: turns requests into engine messages and what comes back into generations.

Knows text and processes; schedules nothing and computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from sgl.engine.api.answer import Answer
from sgl.engine.api.asked import engine_request
from sgl.engine.api.embed import Embedding, EmbedRequest, Prepared, check_task, collect, prepare
from sgl.engine.api.ledger import Book, Times
from sgl.engine.api.limits import Limits, Prompt, bounded_text, check_answers, check_request, fit_prompt
from sgl.engine.api.reader import Entry, Reader
from sgl.engine.api.receipt import Maker, make_receipt, options_of
from sgl.engine.api.request import GenerateRequest, Generation
from sgl.engine.api.sessions import Sessions, Turn
from sgl.engine.base import hub
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.digest import digest, digest_text
from sgl.engine.base.errors import EngineDiedError, OverloadedError, SglError
from sgl.engine.base.interpreter import Interpreter
from sgl.engine.base.read_ahead import read_ahead
from sgl.engine.base.timeline import Timeline, process_start_s
from sgl.engine.base.types import (
    Abort,
    Add,
    Call,
    FinishReason,
    Outbound,
    Output,
    Outputs,
    Reply,
    Stats,
)
from sgl.engine.client import Client, InProcessClient, ProcessClient
from sgl.engine.client.wire import LOOP
from sgl.engine.text.settings import eos_ids
from sgl.engine.text.template import ChatTemplate, load_template
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer, no_tokenizer

logger = logging.getLogger(__name__)

LONG_PROMPT = 4096
"""Prompts of more characters (or ids) than that, together, are prepared beside the event loop."""

NUM_SEEN = 5
"""How many tokens of a prompt tell whether an answer goes on with a text or begins one."""

_NUM_MAKERS = 8
"""Weights that receipts can still be made of once others are served."""

_EXCHANGED = "There is no receipt: the weights that computed this answer were exchanged before anything named them."
_ABORTED = FinishReason(kind="abort", message="The request was aborted.", status=499, code="aborted")
_BROKEN = FinishReason(
    kind="abort", message="The answer cannot be processed; see the log.", status=500, code="internal_error"
)


class AsyncEngine:
    """An engine that runs. Its coroutines belong to one event loop, the first that uses them.

    Attributes:
        config: with the values that the engine has settled.
        tokenizer: refuses text with ``--skip-tokenizer-init``.
        template: the chat template; false if the model has none.
        info: what is known of the loaded model.
        stats: the engine's latest snapshot.
        sessions: to be used on its event loop.
        num_requests: taken so far.
        last_heartbeat_s: when the engine was last heard of, on `time.monotonic`'s clock.
        ledgers: where the time of requests goes.
        timeline: of the start.
        died: set on its event loop when the engine has ended without having been told to.
    """

    def __init__(
        self,
        config: EngineConfig,
        client: Client,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        timeline: Timeline | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.stats = Stats()
        self.sessions = Sessions()
        self.num_requests = 0
        self.last_heartbeat_s = time.monotonic()
        self.ledgers = Book(config.observe.request_ledger_size)
        self._client = client
        self._error: EngineDiedError | None = None
        self._stopping = False
        self._num_updates = 0  # that messages so far have told of: an answer that ends now is of these weights
        self._makers: dict[int, Maker] = {}  # by the number of updates
        self._digesting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active: dict[str, list[Entry]] = {}  # by rid
        self._entries: dict[str, Entry] = {}  # those that the engine works on, by the name it knows
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._serial = itertools.count()
        self._seeds = random.Random(config.model.random_seed)
        self._pool = ThreadPoolExecutor(2, "sgl-tokenizer")
        self.timeline = timeline or Timeline()
        self.died = asyncio.Event()
        self.info = client.start(self._on_message, self._on_died)
        self.timeline.extend(self.info.startup)
        self.timeline.mark("front")
        settled = self.info.max_total_num_tokens, "what the engine has room for"
        is_embedding = not self.info.is_generation, "what the model answers with"
        self.config = config.replace({"cache.max_total_tokens": settled, "model.is_embedding": is_embedding})
        own = (*tokenizer.eos_ids, *self.info.eos_ids)
        self._eos_ids = tuple(token_id for token_id in dict.fromkeys(own) if 0 <= token_id < self.info.vocab_size)
        self._limits = Limits(
            context_len=self.info.context_len,
            max_total_num_tokens=self.info.max_total_num_tokens,
            max_req_input_len=self.info.max_req_input_len,
            vocab_size=self.info.vocab_size,
            auto_truncate=config.schedule.allow_auto_truncate,
            has_text=not config.model.skip_tokenizer_init,
            hidden_size=self.info.hidden_size,
            shares_prefixes=not config.cache.disable_radix_cache,
            has_processors=config.serve.enable_custom_logit_processor,
        )

    @classmethod
    def start(
        cls, config: EngineConfig, *, in_process: bool, loop: str = LOOP, interpreter: Interpreter | None = None
    ) -> AsyncEngine:
        """Loads tokenizer and model; returns when the engine can work.

        Args:
            in_process: whether the engine runs on a thread of this process or in one of its own.
            loop: what builds the engine's loop, as ``module:function``.
            interpreter: the engine's process, if it has been started already; then the timeline is that of this
                whole process.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            ConfigError: an option does not fit the model or the machine.
        """
        timeline = Timeline()
        if interpreter is not None:
            timeline = Timeline(process_start_s())
            timeline.mark("command line", interpreter.started_s)
        if config.model.load_format != "dummy":
            read_ahead(sorted(Path(config.model.model_path).expanduser().glob("*.safetensors")))
        tokenizer = _load_tokenizer(config)
        template = load_template(tokenizer, config.model.chat_template)
        client = InProcessClient(config, loop) if in_process else ProcessClient(config, loop, interpreter)
        return cls(config, client, tokenizer, template, timeline)

    @property
    def alive(self) -> bool:
        """Whether the engine still runs."""
        return self._error is None

    @property
    def num_active(self) -> int:
        """Requests that are not finished."""
        return len(self._active)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Generation, None]:
        """Answers a request: items of all its answers as they come, or one for each at its end.

        Leaving the iteration early, or cancelling it, aborts what is left.

        Raises:
            SglError: the request is refused (before the first item), or the engine gave it up.
        """
        async with contextlib.aclosing(self.generate_batch([request])) as batch:
            async for _, item in batch:
                yield item

    async def generate_batch(
        self, requests: Sequence[GenerateRequest], *, partial: bool = True
    ) -> AsyncGenerator[tuple[int, Generation], None]:
        """As `generate`, for several requests at once: yields (which request, item). One that fails ends all.

        Args:
            partial: whether what there is of an answer that was aborted is an answer, rather than an error.
        """
        self._bind()
        for request in requests:
            check_task(request, self.info)
            check_request(request, self._limits)
        check_answers(sum(request.n for request in requests), self.config.schedule.max_queued_requests)
        if any(request.return_receipt for request in requests):
            await self._maker()  # reads the checkpoint now, rather than at an answer's end
        begun_s = time.monotonic()
        turns = [None if request.session is None else self.sessions.begin(request.session) for request in requests]
        prompts = await self._prompts(requests, turns)
        self._bind()  # again: the engine may have ended meanwhile
        reader, times = Reader(), Times.now(begun_s)
        entries: list[Entry] = []
        try:
            for position, (request, prompt, turn) in enumerate(zip(requests, prompts, turns, strict=True)):
                entries += self._register(reader, position, request, prompt, turn, times)
            num_open = len(entries)
            while num_open:
                await reader.wait()
                while (found := reader.take()) is not None:
                    finish = found[1].finish_reason
                    if finish is not None:
                        num_open -= 1
                        self._end_turn(turns[found[0]])
                        _refuse_failed(finish, partial)
                        found[1].receipt = await self._receipt(requests[found[0]], found[1])
                    yield found
        finally:
            self._release(entries)

    async def embed(self, requests: Sequence[EmbedRequest]) -> list[Embedding]:
        """The vectors of sequences, in order.

        Raises:
            SglError: one of them is refused, or the engine gave it up.
        """
        prepared = await self.prepare_embeddings(requests)
        return await collect(prepared, self.generate_batch(prepared.requests, partial=False))

    async def prepare_embeddings(self, requests: Sequence[EmbedRequest]) -> Prepared:
        """What `generate_batch` is to be asked for ``requests``, and answers as `collect` reads it."""
        arguments = requests, self.tokenizer, self.info, self._limits
        if sum(len(request.text or request.input_ids or ()) for request in requests) <= LONG_PROMPT:
            return prepare(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, prepare, *arguments)

    async def abort(self, rid: str) -> None:
        """Ends the request of that name, all its answers; their readers get a last item."""
        self._abort(self._active.get(rid, []))

    async def abort_all(self) -> None:
        """Ends all requests, as `abort` does."""
        for entries in list(self._active.values()):
            self._abort(entries)

    async def open_session(self, capacity: int, session_id: str | None = None) -> str:
        """A new session; see `Sessions.open`."""
        return self.sessions.open(capacity, session_id)

    async def close_session(self, session_id: str) -> None:
        """Forgets a session and ends its requests; see `Sessions.close`."""
        for rid in self.sessions.close(session_id):
            await self.abort(rid)

    async def call(self, name: str, /, **args: Any) -> dict[str, Any]:
        """Asks the engine for a control operation, such as ``flush_cache``.

        Raises:
            SglError: the engine has no such operation or refuses it.
        """
        loop = self._bind()
        call_id = next(self._serial)
        self._calls[call_id] = loop.create_future()
        try:
            self._client.send(Call(call_id, name, args))
            return await self._calls[call_id]
        finally:
            del self._calls[call_id]

    async def update_weights(self, model_path: str, load_format: str = "auto", **options: Any) -> dict[str, Any]:
        """Goes on with the weights of another checkpoint of the same kind.

        Returns:
            ``{"success", "message"}``. Without success nothing has changed.

        Raises:
            SglError: the engine has ended or is ending.
        """
        try:
            found = await self.call("update_weights", model_path=model_path, load_format=load_format, **options)
        except SglError as error:
            if error.status >= 500:
                raise
            return {"success": False, "message": error.message}
        if found["success"]:
            self.info = msgspec.structs.replace(self.info, model_path=model_path)
            self.config = self.config.replace({"model.model_path": (model_path, "update of the weights")})
        return {"success": found["success"], "message": found["message"]}

    async def maker(self) -> Maker:
        """What computes the answers, for receipts; the first time all of the checkpoint is read."""
        return (await self._maker())[1]

    async def resume_memory(self) -> None:
        """Takes the memory of weights and KV cache again.

        Raises:
            SglError: it was not released, or the weights cannot be read any more.
        """
        found = await self.call("resume_memory")
        if not found["success"]:
            raise SglError(found["message"], code="call_failed", status=500)

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Refuses new requests, lets running ones finish for a while, then aborts the others."""
        self._stopping = True
        deadline_s = time.monotonic() + timeout_s
        while self._active and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        for entries in list(self._active.values()):
            self._abort(entries)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(OverloadedError("The engine is shutting down."))

    async def shutdown(self, drain_s: float = 0.0) -> None:
        """Drains, then ends the engine."""
        await self.drain(drain_s)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Ends the engine at once, without a word to those who wait. Idempotent; from any thread."""
        self._stopping = True
        self._client.close()
        self._pool.shutdown(wait=False)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _bind(self) -> asyncio.AbstractEventLoop:
        """The event loop, if the engine is there for it."""
        if self._error is not None:
            raise EngineDiedError(self._error.message)
        if self._stopping:
            raise OverloadedError("The engine is shutting down.")
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop.is_closed():
            self._loop, self._digesting = loop, asyncio.Lock()
        assert self._loop is loop, "an AsyncEngine belongs to one event loop"
        return loop

    async def _prompts(self, requests: Sequence[GenerateRequest], turns: Sequence[Turn | None]) -> list[Prompt]:
        def prepare() -> list[Prompt]:
            ids = (self._token_ids(request, turn) for request, turn in zip(requests, turns, strict=True))
            return [fit_prompt(found, request, self._limits) for request, found in zip(requests, ids, strict=True)]

        if sum(map(self._weight, requests, turns)) <= LONG_PROMPT:
            return prepare()
        return await asyncio.get_running_loop().run_in_executor(self._pool, prepare)

    def _token_ids(self, request: GenerateRequest, turn: Turn | None) -> Sequence[int]:
        """The prompt's tokens behind those that its session has; only the first of a session begins with BOS."""
        ids = self._own_ids(request)
        if turn is None:
            return ids
        return [*turn.prefix, *(ids[1:] if turn.appends and ids and ids[0] == self.tokenizer.bos_id else ids)]

    def _weight(self, request: GenerateRequest, turn: Turn | None) -> int:
        """How long a prompt is, in characters or numbers."""
        embeds = request.input_embeds if request.input_embeds is not None else ()
        own = len(request.text or request.input_ids or ()) + len(embeds) * self.info.hidden_size
        return own + (len(turn.prefix) if turn is not None else 0)

    def _own_ids(self, request: GenerateRequest) -> Sequence[int]:
        if request.text is None:
            return request.input_ids or ()

        def encode(text: str) -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=request.add_special_tokens)

        return encode(bounded_text(request.text, lambda piece: len(encode(piece)), self._limits))

    def _register(
        self,
        reader: Reader,
        position: int,
        request: GenerateRequest,
        prompt: Prompt,
        turn: Turn | None,
        times: Times,
    ) -> Iterator[Entry]:
        """Hands a request to the engine, once for each answer."""
        rid = request.rid or uuid.uuid4().hex
        if rid in self._active:
            raise SglError(f"rid {rid!r} is already running.", code="duplicate_rid", param="rid")
        entries = self._active[rid] = []
        self.num_requests += 1
        seed = self._seeds.getrandbits(63) if request.seed is None else request.seed
        for index in range(request.n):
            name = rid if request.n == 1 else f"{rid}:{index}"
            interval = self.config.schedule.stream_interval
            after = prompt.token_ids[-NUM_SEEN:]
            first = entries[0].answer if entries else None
            answer = Answer(request, name, index, self.tokenizer, interval, prompt.warnings, after, first)
            if turn is not None:
                for replaced in self.sessions.commit(turn, rid, prompt.token_ids, answer.token_ids):
                    self._abort(self._active.get(replaced, []))
            # A rid may return before the engine has forgotten the one before, so the engine knows it by another name.
            ledger = times.ledger(name, rid, len(prompt.token_ids))
            entry = Entry(rid, f"{name}#{next(self._serial)}", position, answer, reader, ledger, turn)
            self.ledgers.open(entry.wire_rid, ledger)
            entries.append(entry)
            self._entries[entry.wire_rid] = entry
            asked = engine_request(entry.wire_rid, request, prompt, seed, index, self._eos_ids)
            answer.asked = asked if request.return_receipt else None
            answer.num_updates = self._num_updates
            self._client.send(Add(asked))
            yield entry

    def _abort(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.answer.finish is None:
                had_begun = entry.answer.has_begun
                self._drop(entry)
                entry.answer.end(_ABORTED)
                self._notify(entry, had_begun)

    def _drop(self, entry: Entry) -> None:
        """Tells the engine that an answer is not wanted any more."""
        del self._entries[entry.wire_rid]
        self._client.send(Abort(entry.wire_rid))

    def _release(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            finish = entry.answer.finish
            self.ledgers.close(entry.wire_rid, "abort" if finish is None else finish.kind)
            self._active.pop(entry.rid, None)
            self._end_turn(entry.turn)
            if entry.wire_rid in self._entries:
                self._drop(entry)

    def _end_turn(self, turn: Turn | None) -> None:
        """A request of a session has its answer: the next may go on from it."""
        if turn is not None:
            self.sessions.finish(turn)

    # ---- receipts ----------------------------------------------------------------------------------------------------

    async def _maker(self) -> tuple[int, Maker]:
        """What computes answers now, and after how many updates of the weights."""
        self._bind()
        async with self._digesting:  # one caller reads the checkpoint, and the others find what it made
            while True:
                found = await self.call("weight_files")
                num_updates = found["num_updates"]
                if num_updates in self._makers:
                    return num_updates, self._makers[num_updates]
                maker = await self._make_maker([Path(name) for name in found["files"]])
                if await self.call("weight_files") == found:  # else what was read may be something else
                    self._makers[num_updates] = maker
                    if len(self._makers) > _NUM_MAKERS:
                        del self._makers[min(self._makers)]

    async def _make_maker(self, files: Sequence[Path]) -> Maker:
        options, template = options_of(self.config), ""
        if self.template:
            template = digest_text(json.dumps(dict(self.template.sources), sort_keys=True))
        weights = await asyncio.to_thread(digest, files) if files else ""
        return Maker(
            options=options, weights=weights, template=template, kernels=dict(self.info.kernels), isa=self.info.isa
        )

    async def _receipt(self, request: GenerateRequest, item: Generation) -> dict[str, Any] | None:
        """Of a finished answer, where one is wanted; names the weights that it was computed with, or none."""
        if item.asked is None:
            return None
        if item.num_updates not in self._makers:
            with contextlib.suppress(SglError):  # the answer is there, whatever becomes of the engine
                await self._maker()
        maker = self._makers.get(item.num_updates)
        if maker is None:
            return {"error": _EXCHANGED}
        found: dict[str, Any] = msgspec.to_builtins(make_receipt(maker, item.asked, request, item))
        return found

    # ---- messages of the engine --------------------------------------------------------------------------------------

    def _on_message(self, message: Outbound) -> None:
        """On the client's thread."""
        self.last_heartbeat_s = time.monotonic()
        if isinstance(message, Stats):
            self.stats = message
        else:
            self._on_loop(lambda: self._deliver(message))

    def _on_died(self, error: EngineDiedError) -> None:
        """On the client's thread."""
        self._error = error
        self._on_loop(lambda: self._fail(error))

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _deliver(self, message: Outputs | Reply) -> None:
        match message:
            case Outputs(items, step):
                if step is not None:
                    self.ledgers.follow(step, [output.rid for output in items if output.token_ids])
                for output in items:
                    if output.rid in self._entries:  # else it was dropped
                        self._advance(self._entries[output.rid], output)
            case Reply(call_id, value, error, status, param):
                self._num_updates = (value or {}).get("num_updates", self._num_updates)
                future = self._calls.get(call_id)
                if future is None or future.done():
                    return
                if error is None:
                    future.set_result(value or {})
                else:
                    future.set_exception(SglError(error, code="call_failed", status=status, param=param))

    def _advance(self, entry: Entry, output: Output) -> None:
        """A mistake of ours in one answer must not touch the others."""
        answer, began_s, had_begun = entry.answer, time.monotonic(), entry.answer.has_begun
        answer.num_updates = self._num_updates
        try:
            answer.add(output)
        except Exception:
            logger.exception("the output of request %s cannot be processed", entry.rid)
            answer.finish = _BROKEN
        entry.ledger.deliver(len(output.token_ids), began_s, time.monotonic())
        if output.finish is not None:
            del self._entries[entry.wire_rid]
        elif answer.finish is not None:
            self._drop(entry)
        self._notify(entry, had_begun)

    def _notify(self, entry: Entry, had_begun: bool) -> None:
        """Tells the reader what is due; with the first answer's beginning also what the others have kept back."""
        opens = entry.answer.index == 0 and entry.answer.has_begun and not had_begun
        for one in self._active[entry.rid] if opens else (entry,):
            if one.answer.is_due:
                one.reader.notify(one)

    def _fail(self, error: EngineDiedError) -> None:
        self.died.set()
        for entry in self._entries.values():
            entry.reader.fail(EngineDiedError(error.message))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDiedError(error.message))


def _refuse_failed(finish: FinishReason, partial: bool) -> None:
    """An answer that the engine gave up is an error; one that was aborted on request only if all of it is needed."""
    if finish.kind == "abort" and not (partial and finish.status == _ABORTED.status):
        code, retryable = finish.code or "internal_error", finish.status >= 500
        param = finish.param or None
        raise SglError(finish.message, code=code, status=finish.status, param=param, retryable=retryable)


def _load_tokenizer(config: EngineConfig) -> Tokenizer:
    """The tokenizer, which also knows the ids that end an answer according to the model's own files."""
    model = config.model
    source = model.tokenizer_path or model.model_path
    directory = hub.locate(source, hub.TOKENIZER_FILES, model.revision, model.download_dir)
    if model.skip_tokenizer_init:
        return no_tokenizer(directory)
    tokenizer = load_tokenizer(directory, model.tokenizer_mode, trust_remote_code=model.trust_remote_code)
    if source != model.model_path:
        own = hub.locate(model.model_path, ("*.json",), model.revision, model.download_dir)
        tokenizer.eos_ids = tuple(dict.fromkeys((*eos_ids(own), *tokenizer.eos_ids)))
    return tokenizer
