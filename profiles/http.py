"""Asks a running server of sgl; knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from sgl.engine.base.errors import SglError

T = TypeVar("T")

_TIMEOUT_S = 120.0
"""A server that writes a trace answers nothing meanwhile."""


class Connection:
    """To one server; its errors are sentences."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_S)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """
        Raises:
            SglError: it cannot be reached, or refuses.
        """
        try:
            answer = self._client.request(method, self._url + path, json=body)
        except httpx.ConnectError:
            told = f"No server answers at {self._url}; start one with `sgl serve`, or correct the URL."
            raise SglError(told, code="unreachable", status=503) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = str(error).rstrip(".")
            raise SglError(f"{self._url} cannot be reached: {told}.", code="unreachable", status=503) from None
        if answer.status_code != 200:
            raise SglError(f"{self._url} refuses: {_message(answer)}", status=answer.status_code)
        return answer.content

    def read(self, path: str, kind: type[T]) -> T:
        """What is there; raises as `ask`, and where it is something else."""
        try:
            return msgspec.json.decode(self.ask("GET", path), type=kind)
        except msgspec.MsgspecError:
            raise SglError(f"{self._url} is no server of this version of sgl: {path.partition('?')[0]}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
