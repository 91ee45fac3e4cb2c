"""Sends recorded requests to a server when they came, or faster; compares nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
import msgspec

from sgl.bench.data import Sample
from sgl.bench.figures import Outcome
from sgl.bench.load import Run, Traffic
from sgl.engine.api.exchange import Answer, AnswerReader, Exchange
from sgl.engine.base.errors import ConfigError, SglError

_TIMEOUT = httpx.Timeout(10.0, read=6 * 3600.0, pool=None)  # as long as an answer may wait for its turn
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@dataclass(frozen=True)
class Recorded(Sample):
    """A sample that is a whole request already."""

    exchange: Exchange | None = None


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Args:
        url: with or without ``/v1``.
        model: what they name instead of the model that they named; empty to leave that.
    """

    url: str
    api_key: str = ""
    model: str = ""

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def check(self) -> None:
        """Asks the server for its models.

        Raises:
            ConfigError: not a URL.
            SglError: no server there, or it does not let us in.
        """
        try:
            status = httpx.get(f"{self.base}/v1/models", headers=self.headers, timeout=10.0).status_code
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            text = f"--url must be like http://127.0.0.1:30000, got '{self.url}'."
            raise ConfigError(text, param="--url") from None
        except httpx.HTTPError:
            text = f"No server answers at {self.base}; start one with `sgl serve`, or correct --url."
            raise SglError(text, param="--url") from None
        if status in (401, 403):
            raise SglError(f"{self.base} refused the key: pass --api-key or set OPENAI_API_KEY.", status=status)
        if status == 503:
            raise SglError(f"{self.base} is not ready yet.", status=503, retryable=True)


async def send_all(
    run: Run, exchanges: Sequence[Exchange], target: Target, speed: float, keep: Callable[[Exchange], None]
) -> None:
    """Sends all, each as long after the first as it came, and waits for all answers.

    Args:
        run: takes the outcomes; a request has failed if it is not answered, but was when it was recorded.
        speed: how many times faster.
        keep: takes each request with the new answer.

    Raises:
        SglError: an OSError from ``keep``, which ends the replay.
    """
    start_s = exchanges[0].at_s
    samples = [Recorded((), 0, due_s=exchange.at_s - start_s, exchange=exchange) for exchange in exchanges]
    broken: list[BaseException] = []
    async with httpx.AsyncClient(
        base_url=target.base, headers=target.headers, timeout=_TIMEOUT, limits=_NO_LIMITS
    ) as client:

        async def send(sample: Sample, outcome: Outcome) -> None:
            assert isinstance(sample, Recorded) and sample.exchange is not None
            recorded = sample.exchange
            body = {**recorded.body, "model": target.model} if target.model else recorded.body
            at_s = time.time()
            answer = await _ask(client, recorded.path, recorded.rid, body)
            keep(msgspec.structs.replace(recorded, at_s=round(at_s, 6), answer=answer, hidden=[]))
            if recorded.answer.is_good and not answer.is_good:
                raise SglError(answer.error or f"HTTP status {answer.status}", status=answer.status)

        try:
            await run.drive(samples, Traffic(trace_speed=speed), send)
        except* OSError as errors:
            broken += errors.exceptions
    if broken:
        raise SglError(f"The answers cannot be kept: {broken[0]}.", param="--output")


async def _ask(client: httpx.AsyncClient, path: str, rid: str, body: object) -> Answer:
    clock = asyncio.get_running_loop().time
    content = msgspec.json.encode(body)
    reader = AnswerReader(path, clock())
    headers = {"content-type": "application/json", "x-request-id": rid}
    try:
        async with client.stream("POST", path, content=content, headers=headers) as response:
            reader.begin(response.status_code, response.headers.get("content-type", ""))
            async for data in response.aiter_bytes():
                reader.feed(data, clock())
    except httpx.HTTPError as error:
        reader.fail(f"{type(error).__name__} {error}".strip())
        return reader.end(clock(), is_whole=False)
    return reader.end(clock(), is_whole=True)
