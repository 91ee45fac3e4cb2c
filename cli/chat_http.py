"""Chats with any server that speaks the OpenAI API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from sgl.cli.chat_backend import ContextFullError, Piece
from sgl.cli.chat_session import Params
from sgl.engine.base.errors import ConfigError, SglError

_TIMEOUT = httpx.Timeout(10.0, read=600.0)


class HttpBackend:
    """One model behind one URL. Make it with `connect`."""

    def __init__(self, client: httpx.AsyncClient, url: str, model: str) -> None:
        self._client = client
        self._url = url
        self.model = model

    @staticmethod
    async def connect(url: str, api_key: str, model: str) -> HttpBackend:
        """Checks that the server answers; ``model`` may be empty: then it is the first that the server lists.

        Raises:
            SglError: no server there, or it does not let us in.
        """
        base = normalize(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT)
        try:
            response = await client.get(f"{base}/models")
            if response.status_code != 404:  # a few servers have no list of models
                _check(response.status_code, response.text, base)
            names = [] if response.status_code == 404 else _model_names(response, base)
        except httpx.HTTPError as error:
            await client.aclose()
            raise SglError(_unreachable(base, error), param="--url") from None
        except SglError:
            await client.aclose()
            raise
        if not model and not names:
            await client.aclose()
            raise ConfigError(f"{base} does not list its models; pass --model.", param="--model")
        return HttpBackend(client, base, model or names[0])

    async def stream(self, messages: list[dict[str, str]], params: Params) -> AsyncGenerator[Piece, None]:
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **params,
        }
        started = finished = False
        try:
            async with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    _check(response.status_code, (await response.aread()).decode("utf-8", "replace"), self._url)
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    if line.startswith("data:") and data:
                        started, piece = True, _piece(data)
                        finished = finished or piece.finish is not None
                        yield piece
        except httpx.HTTPError as error:
            if not started:
                raise SglError(_unreachable(self._url, error)) from None
        if not finished:  # a few servers end without [DONE]
            raise SglError("The connection broke off: the answer is not complete.", code="broken_off")

    async def close(self) -> None:
        await self._client.aclose()


def normalize(url: str) -> str:
    """``host:port``, with or without scheme, ``/v1`` and ``/chat/completions``, as ``http://host:port/v1``.

    Raises:
        ConfigError: not a URL of a server.
    """
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    text = text.rstrip("/").removesuffix("/chat/completions")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65535:
        raise ConfigError(f"--url must be like http://127.0.0.1:30000, got '{url}'.", param="--url")
    return text if parsed.path not in ("", "/") else f"{text}/v1"


def _piece(data: str) -> Piece:
    try:
        event = json.loads(data)
    except ValueError:
        raise SglError(f"The server sent something that is not JSON: {data[:80]}", code="broken_off") from None
    if not isinstance(event, dict) or event.get("error"):
        raise SglError(_message(event, "The server broke off the answer."), code="broken_off")
    choice = (event.get("choices") or [{}])[0]
    usage: dict[str, Any] = event.get("usage") or {}
    return Piece(
        text=(choice.get("delta") or {}).get("content") or "",
        finish=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def _check(status: int, body: str, url: str) -> None:
    """Raises what an HTTP status other than success means."""
    if status < 300:
        return
    try:
        content = json.loads(body)
    except ValueError:
        content = {}
    told = _message(content, f"{url} answered with HTTP status {status}.")
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if code == "context_length_exceeded" or (status == 400 and "context length" in told):
        raise ContextFullError(told, code="context_length_exceeded")
    if status in (401, 403):
        raise SglError(f"{url} refused the key: pass --api-key or set OPENAI_API_KEY.", status=status)
    if status == 404:
        raise SglError(f"{told} Is --url right, and --model?", status=status)
    raise SglError(told, status=status)


def _message(content: Any, otherwise: str) -> str:
    """The message of an OpenAI error body."""
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else otherwise


def _model_names(response: httpx.Response, url: str) -> list[str]:
    try:
        return [str(item["id"]) for item in response.json()["data"]]
    except (ValueError, TypeError, KeyError):
        raise SglError(f"{url}/models is not an OpenAI-compatible list of models.", param="--url") from None


def _unreachable(url: str, error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"No server answers at {url}; start one with `sgl serve`, or correct --url."
    return f"{url} did not answer: {type(error).__name__} {error}".rstrip() + "."
