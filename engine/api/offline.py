"""The synchronous engine for scripts and notebooks: SGLang's arguments in, SGLang's dictionaries out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

import msgspec

import sgl
from sgl.engine.api.batch import Batch, Output, make_batch, token_columns
from sgl.engine.api.embed import EmbedRequest, native_embedding
from sgl.engine.api.front import AsyncEngine
from sgl.engine.api.limits import type_error
from sgl.engine.api.native import native_output
from sgl.engine.api.request import SessionParams
from sgl.engine.base import env, sources
from sgl.engine.base.errors import SglError
from sgl.engine.text.tokenizer import Tokenizer

T = TypeVar("T")


class GenerateOptions(TypedDict, total=False):
    """Further arguments of `Engine.generate`: one value for all prompts, or a list with one for each.

    ``input_embeds``, a vector for each token, stands in place of ``prompt``; see `GenerateRequest` for the others.
    """

    input_embeds: Any
    return_logprob: bool | Sequence[bool]
    logprob_start_len: int | Sequence[int] | None
    top_logprobs_num: int | Sequence[int] | None
    token_ids_logprob: Sequence[int] | Sequence[Sequence[int]] | None
    return_text_in_logprobs: bool
    return_hidden_states: bool | Sequence[bool] | None
    return_receipt: bool | Sequence[bool] | None
    session_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
    custom_logit_processor: str | Sequence[str | None] | None
    rid: str | Sequence[str] | None


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
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Any:
        """Answers a prompt, or a list of prompts together.

        Args:
            prompt: text, or ``input_ids``; a list of either gives a list of outputs.
            sampling_params: SGLang's; a list has one for each prompt.
            stream: whether to iterate over outputs as they grow, their text cumulative.
            options: see `GenerateOptions`.

        Returns:
            ``{"text", "meta_info"}``, a list of them for several prompts or ``n`` > 1, or an iterator of them, which
            then carry an ``index``.

        Raises:
            SglError: the request is refused.
        """
        batch = self._batch(prompt, sampling_params, input_ids, stream, options)
        if stream:
            return self._iterate(batch.stream(_outputs(self._engine, batch)))
        return self._loop.run(batch.whole(_outputs(self._engine, batch)))

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Any:
        """As `generate`, from any event loop; with ``stream`` an asynchronous iterator."""
        batch = self._batch(prompt, sampling_params, input_ids, stream, options)
        if stream:
            return self._aiterate(batch.stream(_outputs(self._engine, batch)))
        return await asyncio.wrap_future(self._loop.submit(batch.whole(_outputs(self._engine, batch))))

    def encode(
        self,
        prompt: str | Sequence[str] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        dimensions: int | None = None,
    ) -> Any:
        """The embedding of a prompt, or of each of a list; of a model with a head for scores, these.

        Args:
            prompt: text, or ``input_ids``; a list of either gives a list of outputs.
            dimensions: how many of an embedding's first entries to keep and scale to length one; None for all.

        Returns:
            ``{"embedding", "meta_info"}``, or a list of them.

        Raises:
            SglError: the request is refused, or the model generates text (see ``is_embedding=True``).
        """
        return self._loop.run(_encode(self._engine, prompt, input_ids, dimensions))

    async def async_encode(
        self,
        prompt: str | Sequence[str] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        dimensions: int | None = None,
    ) -> Any:
        """As `encode`, from any event loop."""
        encoding = _encode(self._engine, prompt, input_ids, dimensions)
        return await asyncio.wrap_future(self._loop.submit(encoding))

    def flush_cache(self) -> bool:
        """Forgets all cached prefixes; False if requests are running."""
        return bool(self._loop.run(self._engine.call("flush_cache"))["success"])

    def get_server_info(self) -> dict[str, Any]:
        """All options, what the memory holds, the weights, and the version."""
        info = self._engine.info
        return {
            **self._engine.config.to_flat_dict(),
            "max_total_num_tokens": info.max_total_num_tokens,
            "max_req_input_len": info.max_req_input_len,
            "weights": self._loop.run(self._engine.call("describe_weights")),
            "canary": self._loop.run(self._engine.call("canary")),
            "version": sgl.__version__,
        }

    def update_weights_from_disk(
        self, model_path: str, load_format: str = "auto", *, abort_all_requests: bool = False
    ) -> dict[str, Any]:
        """Goes on with the weights of another checkpoint of the same architecture and sizes.

        Args:
            abort_all_requests: whether running requests are ended instead of being finished first.

        Returns:
            ``{"success", "message"}``. Without success the weights are those from before.
        """
        options = {"drain_s": 0.0} if abort_all_requests else {}
        return self._loop.run(self._engine.update_weights(model_path, load_format, **options))

    def get_weights_by_name(self, name: str, truncate_size: int = 100) -> Any:
        """The first rows of a tensor of the checkpoint that is served, as an array.

        Raises:
            SglError: there is no such tensor.
        """
        found = self._loop.run(self._engine.call("get_weights", name=name, truncate_size=truncate_size))
        return _array([found["data"]])[0].reshape(found["rows"])

    def release_memory_occupation(self) -> None:
        """Gives back the memory of weights and KV cache until `resume_memory_occupation`."""
        self._loop.run(self._engine.call("release_memory"))

    def resume_memory_occupation(self) -> None:
        """Takes the memory again and reads the weights."""
        self._loop.run(self._engine.resume_memory())

    def start_profile(self, output_dir: str = "", num_steps: int | None = None) -> str:
        """Records what the engine does, for some steps or until `stop_profile`; returns where traces go."""
        call = self._engine.call("start_profile", output_dir=output_dir, num_steps=num_steps)
        return str(self._loop.run(call)["directory"])

    def stop_profile(self) -> str:
        """Ends the profile; returns the file of its trace."""
        return str(self._loop.run(self._engine.call("stop_profile"))["path"])

    def open_session(self, capacity_of_str_len: int, session_id: str | None = None) -> str:
        """A session for ``session_params={"id": ..., "rid": ...}``, which holds so many tokens; returns its id."""
        return self._loop.run(self._engine.open_session(capacity_of_str_len, session_id))

    def close_session(self, session_id: str) -> None:
        """Forgets a session and ends its requests."""
        self._loop.run(self._engine.close_session(session_id))

    def shutdown(self) -> None:
        """Aborts what runs and frees the model. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _batch(self, prompt: Any, sampling: Any, input_ids: Any, stream: bool, options: GenerateOptions) -> Batch:
        """The requests of one call.

        Raises:
            SglError: an argument is unknown or of the wrong length or type.
        """
        columns: dict[str, Any] = {**options}
        unknown = [name for name in columns if name not in GenerateOptions.__annotations__]
        if unknown:
            known = ", ".join(GenerateOptions.__annotations__)
            raise SglError(f"generate() has no argument {unknown[0]!r}; it takes: {known}.", param=unknown[0])
        given = {"text": prompt, "input_ids": input_ids, "input_embeds": columns.pop("input_embeds", None)}
        found = [(field, value) for field, value in given.items() if value is not None]
        if len(found) != 1:
            raise SglError("Either text, input_ids or input_embeds should be provided.", param="prompt")
        [(field, value)] = found
        contents, is_list = _READERS[field](value)
        if columns.get("return_hidden_states") is None:
            columns["return_hidden_states"] = self._engine.config.serve.return_hidden_states
        columns.update(session_params=_sessions(columns.pop("session_params", None)), sampling_params=sampling)
        ids = token_columns(columns.pop("token_ids_logprob", None), len(contents))
        if not is_list:  # then a list is one value
            columns = {name: [column] for name, column in columns.items()}
        return make_batch(field, contents, is_list, {**columns, "token_ids_logprob": ids}, stream=stream)

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


def _vectors(rows: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether they came as a list; arrays are fine."""
    found = rows.tolist() if isinstance(rows, _HasList) else rows
    if not isinstance(found, list) or not found:
        message = f"input_embeds must be a list of vectors or a list of such lists, got {rows!r:.40}."
        raise SglError(message, param="input_embeds")
    found = [row.tolist() if isinstance(row, _HasList) else row for row in found]
    is_list = isinstance(found[0], list) and bool(found[0]) and isinstance(found[0][0], list | _HasList)
    return (found, True) if is_list else ([found], False)


@runtime_checkable
class _HasList(Protocol):
    """Arrays of any library."""

    def tolist(self) -> list[Any]: ...


_READERS: Mapping[str, Callable[[Any], tuple[list[Any], bool]]] = {
    "text": _texts,
    "input_ids": _id_lists,
    "input_embeds": _vectors,
}


def _sessions(given: Any) -> Any:
    """SGLang's dictionaries as what a request holds."""
    if isinstance(given, list):
        return [_sessions(entry) for entry in given]
    if not isinstance(given, Mapping):
        return given
    try:
        return msgspec.convert(given, SessionParams)
    except msgspec.ValidationError as error:
        raise type_error(error, "session_params") from None


def _array(rows: Sequence[bytes]) -> Any:
    """Float32 vectors as one array ``[N, H]``."""
    import numpy as np

    return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)


async def _outputs(engine: AsyncEngine, batch: Batch) -> AsyncGenerator[tuple[int, int, Output], None]:
    """(prompt, answer, rendered item) as they come."""
    async with contextlib.aclosing(engine.generate_batch(batch.requests)) as items:
        async for position, item in items:
            request = batch.requests[position]
            yield position, item.index, native_output(item, request, engine.tokenizer, _array)


async def _encode(engine: AsyncEngine, prompt: Any, input_ids: Any, dimensions: int | None) -> Any:
    """`Engine.encode`."""
    if (prompt is None) == (input_ids is None):
        raise SglError("Either prompt or input_ids should be provided.", param="prompt")
    contents, is_list = _texts(prompt) if input_ids is None else _id_lists(input_ids)
    name, field = ("prompt", "text") if input_ids is None else ("input_ids", "input_ids")
    requests = [
        EmbedRequest(name=f"{name}[{i}]" if is_list else name, dimensions=dimensions, **{field: content})
        for i, content in enumerate(contents)
    ]
    found = [native_embedding(item, item.values) for item in await engine.embed(requests)] if requests else []
    return found if is_list else found[0]


async def _next(items: AsyncGenerator[Output, None]) -> Output | None:
    return await anext(items, None)


async def _aclose(items: AsyncGenerator[Output, None]) -> None:
    await items.aclose()
