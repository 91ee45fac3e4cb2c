"""Asks a streaming server and notes when each event came, over plain sockets: a heavier client would take its cores.

A new connection for every request; its time begins before the connection is made.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sgl.bench.peers.workloads import Answer, Prompt, Round
from sgl.engine.base.errors import ConfigError, SglError

Clock = Callable[[], float]
ReadLine = Callable[[], Awaitable[bytes]]
Json = dict[str, Any]

_LINE_BYTES = 1 << 24


@dataclass
class Seen:
    """What an event says: whether it brings tokens, how many there are by now, whether the answer is over."""

    brings: bool
    count: int | None = None
    is_last: bool = False


@dataclass(frozen=True)
class Api:
    """One kind of server: its route, the body for a prompt, an answer's length and a model's name, and its events."""

    path: str
    body: Callable[[Prompt, int, str], Json]
    read: Callable[[Json], Seen]


def _openai_body(prompt: Prompt, output_len: int, model: str) -> Json:
    options = {"max_tokens": output_len, "temperature": 0, "ignore_eos": True}
    return {"model": model, "prompt": prompt, **options, "stream": True, "stream_options": {"include_usage": True}}


def _read_openai(event: Json) -> Seen:
    usage = event.get("usage") or {}
    return Seen(bool(event.get("choices")), usage.get("completion_tokens"))


def _llama_body(prompt: Prompt, output_len: int, model: str) -> Json:
    options = {"n_predict": output_len, "temperature": 0, "ignore_eos": True, "samplers": ["temperature"]}
    return {"prompt": prompt, **options, "stream": True, "cache_prompt": True, "return_tokens": True}


def _read_llama(event: Json) -> Seen:
    if event.get("stop"):
        return Seen(False, event.get("tokens_predicted"), is_last=True)
    return Seen(True)


def _native_body(prompt: Prompt, output_len: int, model: str) -> Json:
    sampling = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
    return {"input_ids": prompt, "stream": True, "sampling_params": sampling}


def _read_native(event: Json) -> Seen:
    return Seen(True, event["meta_info"]["completion_tokens"])


APIS: Mapping[str, Api] = {
    "openai": Api("/v1/completions", _openai_body, _read_openai),
    "llama": Api("/completion", _llama_body, _read_llama),
    "sglang": Api("/generate", _native_body, _read_native),
}


class Client:
    """Sends rounds of requests to one server.

    Args:
        url: ``http://host:port``.
        api: one of `APIS`.
        model: its name there, for OpenAI's API.

    Raises:
        ConfigError: not such a URL, or an unknown API.
    """

    def __init__(self, url: str, api: str, model: str = "m", clock: Clock = time.perf_counter) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"A server's URL must be like http://127.0.0.1:30000, got '{url}'.")
        if api not in APIS:
            raise ConfigError(f"The API {api} is unknown; use {', '.join(APIS)}.")
        self._host, self._port = parts.hostname, parts.port or 80
        self._api, self._model, self._clock = APIS[api], model, clock

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round:
        """Sends all prompts, ``concurrency`` at once (0: all), and waits for the answers.

        Raises:
            SglError: a request failed or its answer does not have ``output_len`` tokens.
        """
        return asyncio.run(self._round(prompts, output_len, concurrency or len(prompts)))

    async def _round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int) -> Round:
        places = asyncio.Semaphore(concurrency)

        async def ask(prompt: Prompt) -> Answer:
            async with places:
                return await self._ask(prompt, output_len)

        start_s = self._clock()
        answers = await asyncio.gather(*map(ask, prompts))
        return Round(self._clock() - start_s, answers)

    async def _ask(self, prompt: Prompt, output_len: int) -> Answer:
        body = json.dumps(self._api.body(prompt, output_len, self._model)).encode()
        head = f"POST {self._api.path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        sent_s = self._clock()
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=_LINE_BYTES)
            try:
                writer.write(head.encode() + body)
                await writer.drain()
                return await read_answer(reader.readline, self._api, sent_s, output_len, self._clock)
            finally:
                writer.close()
        except OSError as error:
            raise SglError(f"http://{self._host}:{self._port} did not answer: {error}.") from None


async def read_answer(readline: ReadLine, api: Api, sent_s: float, output_len: int, clock: Clock) -> Answer:
    """Reads a streamed answer to its end.

    Raises:
        SglError: the server refused, sent nothing, or did not count ``output_len`` tokens.
    """
    status = (await readline()).decode("latin-1").strip()
    arrivals: list[float] = []
    count: int | None = None
    other = b""
    while line := await readline():
        if not line.startswith(b"data:"):
            other += line if " 200" not in status else b""
            continue
        if line.startswith(b"data: [DONE]"):
            break
        seen = api.read(json.loads(line[5:]))
        if seen.brings:
            arrivals.append(clock())
        count = count if seen.count is None else seen.count
        if seen.is_last:
            count = output_len if count is None else count
            break
    if " 200" not in status or not arrivals:
        raise SglError(f"The server answered '{status}': {other[-300:].decode('utf-8', 'replace').strip()}")
    if count != output_len:
        raise SglError(f"The server answered with {count} tokens where {output_len} were asked for.")
    return Answer(sent_s, arrivals, count)
