"""The synchronous engine for scripts and notebooks: SGLang's arguments in, SGLang's dictionaries out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

import sgl
from sgl.engine.api.front import AsyncEngine
from sgl.engine.api.native import native_output
from sgl.engine.api.request import GenerateRequest
from sgl.engine.api.sampling import set_sampling
from sgl.engine.base import env, sources
from sgl.engine.base.errors import SglError
from sgl.engine.text.tokenizer import Tokenizer

T = TypeVar("T")
Output = dict[str, Any]
_LISTS = ("sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "rid")


class Engine:
    """A model in this process. Thread-safe; works where an event loop runs already (notebooks).

    Args:
        options: server arguments by their SGLang names: ``model_path``, ``dtype``, ``mem_fraction_static``, ...

    Raises:
        ConfigError: an option is unknown or does not fit.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, **options: Any) -> None:
        given = sources.merge(sources.from_call(options), sources.from_environment(env.all_variables(), compat=False))
        self._engine = AsyncEngine.start(sources.configure(sources.with_demo_model(given)), in_process=True)
        self._loop = _LoopThread()
        self._finalizer = weakref.finalize(self, _close, self._engine, self._loop)  # also at the interpreter's exit

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def tokenizer_manager(self) -> AsyncEngine:
        """SGLang's name for what holds ``.tokenizer``."""
        return self._engine

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        return_logprob: bool | Sequence[bool] = False,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        return_text_in_logprobs: bool = False,
        stream: bool = False,
        rid: str | Sequence[str] | None = None,
    ) -> Any:
        """Answers a prompt, or a list of prompts together.

        Args:
            prompt: text, or ``input_ids``; a list of either gives a list of outputs.
            sampling_params: SGLang's; a list has one for each prompt. The next arguments likewise.
            stream: whether to iterate over outputs as they grow, their text cumulative.

        Returns:
            ``{"text", "meta_info"}``, a list of them for several prompts or ``n`` > 1, or an iterator of them, which
            then carry an ``index``.

        Raises:
            SglError: the request is refused.
        """
        lists = (sampling_params, return_logprob, logprob_start_len, top_logprobs_num, rid)
        batch = _Batch.of(prompt, input_ids, lists, stream, return_text_in_logprobs)
        if stream:
            return self._iterate(batch.stream(self._engine))
        return self._loop.run(batch.whole(self._engine))

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        return_logprob: bool | Sequence[bool] = False,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        return_text_in_logprobs: bool = False,
        stream: bool = False,
        rid: str | Sequence[str] | None = None,
    ) -> Any:
        """As `generate`, from any event loop; with ``stream`` an asynchronous iterator."""
        lists = (sampling_params, return_logprob, logprob_start_len, top_logprobs_num, rid)
        batch = _Batch.of(prompt, input_ids, lists, stream, return_text_in_logprobs)
        if stream:
            return self._aiterate(batch.stream(self._engine))
        return await asyncio.wrap_future(self._loop.submit(batch.whole(self._engine)))

    def flush_cache(self) -> bool:
        """Forgets all cached prefixes; False if requests are running."""
        return bool(self._loop.run(self._engine.call("flush_cache"))["success"])

    def get_server_info(self) -> dict[str, Any]:
        """All options, what the memory holds, and the version."""
        info = self._engine.info
        return {
            **self._engine.config.to_flat_dict(),
            "max_total_num_tokens": info.max_total_num_tokens,
            "max_req_input_len": info.max_req_input_len,
            "version": sgl.__version__,
        }

    def shutdown(self) -> None:
        """Aborts what runs and frees the model. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _iterate(self, items: AsyncGenerator[Output, None]) -> Iterator[Output]:
        try:
            while (item := self._loop.run(_next(items))) is not None:
                yield item
        finally:
            self._loop.discard(items)

    async def _aiterate(self, items: AsyncGenerator[Output, None]) -> AsyncIterator[Output]:
        try:
            while (item := await asyncio.wrap_future(self._loop.submit(_next(items)))) is not None:
                yield item
        finally:
            self._loop.discard(items)


class _Batch:
    """The requests of one call.

    Args:
        is_list: whether the caller gave, and so gets, a list.
    """

    def __init__(self, requests: list[GenerateRequest], is_list: bool) -> None:
        self._requests = requests
        self._is_list = is_list or any(request.n != 1 for request in requests)

    @classmethod
    def of(cls, prompt: Any, input_ids: Any, lists: Sequence[Any], stream: bool, with_text: bool) -> _Batch:
        """From the arguments of `Engine.generate`; ``lists`` are those of which each prompt may have its own.

        Raises:
            SglError: their lengths or types do not fit together.
        """
        if (prompt is None) == (input_ids is None):
            raise SglError("Either text, input_ids or input_embeds should be provided.", param="prompt")
        contents, is_list = _texts(prompt) if input_ids is None else _id_lists(input_ids)
        columns = [_column(value, len(contents), name, is_list) for name, value in zip(_LISTS, lists, strict=True)]
        requests = []
        for content, sampling, logprob, start, num_top, rid in zip(contents, *columns, strict=True):
            request = GenerateRequest(
                rid=rid,
                stream=stream,
                return_logprob=bool(logprob),
                logprob_start_len=-1 if start is None else start,
                top_logprobs_num=num_top or 0,
                return_text_in_logprobs=with_text,
            )
            request.text, request.input_ids = (content, None) if input_ids is None else (None, content)
            set_sampling(request, sampling)
            requests.append(request)
        return cls(requests, is_list)

    async def whole(self, engine: AsyncEngine) -> Any:
        outputs: dict[tuple[int, int], Output] = {}
        async for position, item in engine.generate_batch(self._requests):
            outputs[position, item.index] = native_output(item, self._requests[position], engine.tokenizer)
        ordered = [outputs[key] for key in sorted(outputs)]
        return ordered if self._is_list else ordered[0]

    async def stream(self, engine: AsyncEngine) -> AsyncGenerator[Output, None]:
        firsts = [sum(request.n for request in self._requests[:position]) for position in range(len(self._requests))]
        async for position, item in engine.generate_batch(self._requests):
            output = native_output(item, self._requests[position], engine.tokenizer)
            yield {**output, "index": firsts[position] + item.index} if self._is_list else output


class _LoopThread:
    """An event loop of our own, so that the caller's does not matter."""

    def __init__(self) -> None:
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(_until_stopped(ready),), name="sgl-front", daemon=True
        )
        self._thread.start()
        self._loop, self._stop = ready.result()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts the coroutine; cancelling the future cancels it."""
        if not self._thread.is_alive():
            coroutine.close()
            raise SglError("The engine has been shut down.", code="engine_shut_down")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for the result; an interrupt (Ctrl-C) cancels the coroutine, and so aborts its requests."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def discard(self, items: AsyncGenerator[Any, None]) -> None:
        """Closes a generator without waiting for it."""
        with contextlib.suppress(SglError):
            self.submit(_aclose(items))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


async def _until_stopped(ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    stop = asyncio.Event()
    ready.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()


def _close(engine: AsyncEngine, loop: _LoopThread) -> None:
    if threading.current_thread().name.startswith("sgl-"):  # the garbage collector ran on one of the engine's threads
        threading.Thread(target=_close, args=(engine, loop), name="closing").start()
        return
    loop.run(engine.drain())
    engine.close()
    loop.close()


def _texts(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether they came as a list."""
    if isinstance(prompt, str | bytes):
        return [prompt], False
    if not isinstance(prompt, Iterable):
        raise SglError(f"prompt must be a text or a list of texts, got {prompt!r:.40}.", param="prompt")
    return list(prompt), True


def _id_lists(ids: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether they came as a list; arrays are fine."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        message = f"input_ids must be a list of token ids or a list of such lists, got {ids!r:.40}."
        raise SglError(message, param="input_ids")
    rows = list(ids)
    is_list = bool(rows) and isinstance(rows[0], Iterable)
    return ([list(row) if isinstance(row, Iterable) else row for row in rows], True) if is_list else ([rows], False)


def _column(value: Any, count: int, name: str, is_list: bool) -> list[Any]:
    """One value for each prompt."""
    if not is_list or isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise SglError(f"{name} must have one entry for each of the {count} prompts, got {len(value)}.", param=name)
    return list(value)


async def _next(items: AsyncGenerator[Output, None]) -> Output | None:
    return await anext(items, None)


async def _aclose(items: AsyncGenerator[Output, None]) -> None:
    await items.aclose()
