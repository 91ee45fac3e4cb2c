"""Latency and throughput of a server behind a URL; reads no data, draws no arrivals and prints nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import msgspec

from sgl.bench.backends import BACKENDS, Ask, Json
from sgl.bench.constraint import check_run
from sgl.bench.contamination import Clocks, ContaminatedError, Facts, check_cache
from sgl.bench.data import Sample
from sgl.bench.figures import Outcome, by_turn, goodput, summarize
from sgl.bench.load import Run, Traffic, warm_up_with
from sgl.engine.base import hub
from sgl.engine.base.cost import Cost
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.types import Grammar
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer

_TIMEOUT = httpx.Timeout(10.0, read=6 * 3600.0, pool=None)  # an answer may wait long for its turn: that is measured
_IDLE_TIMEOUT_S = 5.0
_MODEL_KEYS = ("model_path", "tokenizer_path")
_MODEL_OPTIONS = ("served_model_name", "revision", "dtype", "quantization", "weight_version")
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@dataclass(frozen=True)
class Target:
    """The server under test.

    Args:
        backend: one of `BACKENDS`.
        url: with or without ``/v1``.
        model: its name there; empty for the first that the server lists.
        tokenizer: directory or Hub id; empty for the one that the server names, or the model's.
        ignore_eos: whether answers have exactly the tokens asked for, where the server can be told.
        profile: whether the server records runs, as SGLang's can.
        grammar: that all answers are kept to.
    """

    backend: str
    url: str
    model: str = ""
    tokenizer: str = ""
    api_key: str = ""
    ignore_eos: bool = True
    profile: bool = False
    grammar: Grammar | None = None

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def check(self) -> None:
        """
        Raises:
            ConfigError: an unknown backend or one that has no such grammars, or not a URL.
        """
        if self.backend not in BACKENDS:
            raise ConfigError(f"--backend {self.backend} is unknown; use {', '.join(BACKENDS)}.", param="--backend")
        self.constraint()
        try:
            parsed = httpx.URL(self.base)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            message = f"--base-url must be like http://127.0.0.1:30000, got '{self.url}'."
            raise ConfigError(message, param="--base-url")

    def constraint(self) -> Json:
        """The fields of a request that keep its answer to the grammar."""
        return BACKENDS[self.backend].constrain(self.grammar) if self.grammar else {}


class Server:
    """A server that answered, and what it says of its model. Make it with `connect`."""

    def __init__(self, target: Target, model: str, tokenizer: Tokenizer, facts: Facts) -> None:
        self.target = target
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
        self._backend = BACKENDS[target.backend]
        self._clocks = Clocks.now()

    @staticmethod
    def connect(target: Target) -> Server:
        """Asks the server for its model and loads the tokenizer.

        Raises:
            ConfigError: no tokenizer, or no model's name.
            SglError: no server there, or it does not let us in.
        """
        target.check()
        facts = ask(target)
        model = target.model or facts.model.get("model", "")
        source = target.tokenizer or facts.model.get("tokenizer_path", "") or model
        if not source:
            raise ConfigError(f"{target.base} does not say what model it has; pass --model.", param="--model")
        return Server(target, model, _tokenizer(source), facts)

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, whose memory it then shares."""
        return httpx.URL(self.target.base).host in ("127.0.0.1", "localhost", "::1")

    async def measure(
        self, run: Run, samples: Sequence[Sample], traffic: Traffic, warm_up: Sequence[Sample], *, flush: bool
    ) -> None:
        """Warms up, empties the prefix cache if that is wanted, and sends the samples.

        Raises:
            ContaminatedError: the server is busy with requests of others.
            SglError: a warm-up request failed, or the cache cannot be emptied.
        """
        client = httpx.AsyncClient(
            base_url=self.target.base, headers=headers(self.target), timeout=_TIMEOUT, limits=_NO_LIMITS
        )

        async def send(sample: Sample, outcome: Outcome) -> None:
            await self._send(client, sample, outcome)

        async with client:
            await warm_up_with(warm_up, send, traffic.max_concurrency)
            self.facts = await self._idle()
            if flush:
                await self._post(client, "/flush_cache", "--flush-cache")
            if self.target.profile:
                await self._post(client, "/start_profile", "--profile")
            self._clocks = Clocks.now()
            try:
                await run.drive(samples, traffic, send, self._follow)
            finally:
                if self.target.profile:
                    await self._post(client, "/stop_profile", "--profile")

    def verify(self, run: Run, samples: Sequence[Sample], cache_state: str) -> list[str]:
        """Makes sure that what was measured is what was meant; notes on what could not be found out.

        Raises:
            ContaminatedError: the clock jumped, the server worked for others or changed, the cache was in another
                state than declared, or a grammar let answers end early.
        """
        self._clocks.check(Clocks.now())
        if self.target.grammar is not None and self.target.ignore_eos:
            check_run(samples, run.outcomes)
        self.facts.check(ask(self.target), run.num_sent)
        note = check_cache(cache_state, samples, run.outcomes)
        alone = "" if self.facts.num_requests is not None else "The server does not say whether it worked for others."
        return [text for text in (note, alone) if text]

    def result(self, run: Run, traffic: Traffic, slo: dict[str, float], *, flush: bool) -> dict[str, Any]:
        """Figures of what was measured, by SGLang's names."""
        finite = traffic.request_rate is not None and not math.isinf(traffic.request_rate)
        texts = [outcome.text for outcome in run.outcomes if not outcome.error]
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False) if texts else []
        bounds = {"slo": slo, **goodput(run.outcomes, run.duration_s, slo)} if slo else {}
        turns = by_turn(run.outcomes)
        return {
            "backend": self.target.backend,
            "base_url": self.target.base,
            "model": self.model,
            "request_rate": traffic.request_rate if finite else "inf",
            "arrival": traffic.arrival if finite else "at once",
            "max_concurrency": traffic.max_concurrency,
            "cache_state": "cold" if flush else "any",
            **summarize(run.outcomes, run.duration_s),
            **({"turns": turns} if turns else {}),
            "total_output_tokens_retokenized": sum(map(len, encoded)),
            **bounds,
            "interrupted": run.interrupted,
        }

    def _follow(self, sample: Sample, outcome: Outcome) -> Sample | None:
        """The next question of a conversation; the answer is known by its text."""
        if not sample.later:
            return None
        answer_ids = self.tokenizer.encode(outcome.text, add_special_tokens=False)
        return replace(sample, text=self._text(sample)).follow(answer_ids, outcome.text)

    def _text(self, sample: Sample) -> str:
        """The question; decoded from its ids where it was drawn, and the server wants text."""
        return sample.text if sample.text or not self._backend.sends_text else self.tokenizer.decode(sample.input_ids)

    async def _idle(self) -> Facts:
        """What the server says as soon as it is idle."""
        deadline_s = time.monotonic() + _IDLE_TIMEOUT_S
        while (facts := ask(self.target)).num_active:
            if time.monotonic() > deadline_s:
                raise ContaminatedError(
                    f"{self.target.base} is busy with {facts.num_active} requests of others; nothing was measured."
                )
            await asyncio.sleep(0.05)
        return facts

    async def _post(self, client: httpx.AsyncClient, path: str, flag: str) -> None:
        response = await client.post(path)
        if response.status_code != 200:
            message = f"{flag}: {self.target.base}{path} answered with HTTP status {response.status_code}."
            raise SglError(message, param=flag)

    async def _send(self, client: httpx.AsyncClient, sample: Sample, outcome: Outcome) -> None:
        backend, target = self._backend, self.target
        ignore_eos = target.ignore_eos and backend.extends_openai
        request = Ask(sample, self._text(sample), self.model, ignore_eos, target.constraint())
        try:
            async with client.stream("POST", backend.path, json=backend.body(request)) as response:
                if response.status_code != 200:
                    raise SglError(refusal(response.status_code, await response.aread()))
                await self._read(response, outcome)
        except httpx.HTTPError as error:
            raise SglError(unreachable(target.base, error)) from None
        if not outcome.input_len:
            raise SglError("The server did not say how many tokens it read and wrote (usage).")

    async def _read(self, response: httpx.Response, outcome: Outcome) -> None:
        clock = asyncio.get_running_loop().time
        is_over = False
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            if not line.startswith("data:") or not data:
                continue
            now_s = clock()
            event = _event(data)
            try:
                is_over = self._backend.read(event, outcome, now_s) or is_over
            except (KeyError, TypeError, AttributeError):
                message = f"The server's events are not those of --backend {self.target.backend}: {data[:120]}"
                raise SglError(message) from None
        if not is_over:  # a few servers end without [DONE]
            raise SglError("The connection broke off: the answer is not complete.")


def ask(target: Target) -> Facts:
    """What a server says of itself; only ours says all of it.

    Raises:
        SglError: no server there, or it does not let us in.
    """
    try:
        with httpx.Client(base_url=target.base, headers=headers(target), timeout=10.0) as client:
            listed, info, server = map(client.get, ("/v1/models", "/get_model_info", "/get_server_info"))
    except httpx.HTTPError as error:
        raise SglError(unreachable(target.base, error), param="--base-url") from None
    if listed.status_code in (401, 403):
        raise SglError(f"{target.base} refused the key: pass --api-key or set OPENAI_API_KEY.", status=401)
    if listed.status_code == 503:
        raise SglError(f"{target.base} is not ready: {refusal(503, listed.content)}", status=503, retryable=True)
    names = [str(item.get("id") or "") for item in _object(listed).get("data") or () if isinstance(item, dict)]
    told, more = _object(info), _object(server)
    named = {"model": next(iter(names), ""), **{key: told.get(key) for key in _MODEL_KEYS}}
    named |= {key: more.get(key) for key in _MODEL_OPTIONS}
    told_load = more.get("load")
    load = told_load if isinstance(told_load, dict) else {}
    return Facts(
        {key: str(value) for key, value in named.items() if value},
        num_active=load.get("num_active"),
        num_requests=load.get("num_requests"),
        cost=_cost(more.get("cost")),
        cores=more.get("cpu_threads"),
        chunk=more.get("chunked_prefill_size"),
    )


def _cost(told: object) -> Cost:
    try:
        return msgspec.convert(told, Cost)
    except msgspec.ValidationError:
        return Cost()


def _event(data: str) -> Json:
    try:
        event = msgspec.json.decode(data)
    except msgspec.DecodeError:
        event = None
    if not isinstance(event, dict):
        raise SglError(f"The server sent something that is not a JSON object: {data[:120]}")
    if event.get("error"):
        raise SglError(f"The server broke off the answer: {_message(event)}")
    return event


def _tokenizer(source: str) -> Tokenizer:
    try:
        return load_tokenizer(hub.locate(source, hub.TOKENIZER_FILES))
    except SglError as error:
        message = f"The tokenizer of {source} cannot be loaded here; pass --tokenizer. ({error.message})"
        raise ConfigError(message, param="--tokenizer") from None


def headers(target: Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}


def _object(response: httpx.Response) -> Json:
    """The JSON object of a successful answer; empty for anything else."""
    if response.status_code != 200:
        return {}
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def refusal(status: int, body: bytes) -> str:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        content = None
    return f"HTTP status {status}: {_message(content) or body[:200].decode('utf-8', 'replace')}".rstrip(": ")


def _message(content: Any) -> str:
    """The message of an error body, in OpenAI's form or a plainer one."""
    error = content.get("error", content) if isinstance(content, dict) else ""
    return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)


def unreachable(base: str, error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"No server answers at {base}; start one with `sgl serve`, or correct the URL."
    return f"{base} did not answer: {type(error).__name__} {error}".rstrip() + "."
