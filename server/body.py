"""Turns a request body into typed values, within limits; every refusal says where the body is wrong.

Bounds its size while it arrives (`BodyLimit`), its nesting and its types. Knows no route.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl.engine.api.limits import type_error
from sgl.engine.base.errors import SglError

T = TypeVar("T")
MAX_NESTING = 64
_LINGER_S = 5.0
_LONE_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F]..)")


class BodyLimit:
    """ASGI middleware that refuses a body of more than ``max_bytes`` with 413 as soon as that is known.

    The refusal is sent at once; what the client still sends is then thrown away for a few seconds, since closing the
    socket on a client that is writing would lose the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        num_declared = int(declared[:19]) if declared.isdecimal() else 0
        seen = num_declared if num_declared > self._max_bytes else 0
        refused = False

        async def limited_receive() -> Message:
            nonlocal seen, refused
            if seen <= self._max_bytes:
                message = await receive()
                seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                refused = True
                text = f"The request body is larger than {self._max_bytes} bytes (see --max-body-bytes)."
                raise SglError(text, code="body_too_large", status=413)
            return message

        async def lingering_send(message: Message) -> None:
            if refused and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            if refused and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, limited_receive, lingering_send)


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        return


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an error.

    Raises:
        SglError: 400 with the byte at which the JSON is malformed, 413 from `BodyLimit`.
    """
    body = await request.body()
    value = _decode(body)
    if not isinstance(value, dict):
        raise _malformed(f"must be a JSON object, not {_name(value)}")
    return value


def convert(value: Mapping[str, Any], to: type[T]) -> T:
    """A decoded object as a msgspec struct.

    Raises:
        SglError: 400 naming the field by its dotted path.
    """
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        raise type_error(error) from None


def _decode(body: bytes) -> Any:
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise _malformed(f"is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise _malformed(f"is nested more than {MAX_NESTING} levels deep") from None
    except msgspec.DecodeError as error:
        raise _malformed(_reason(error, body)) from None
    if _nesting(value) > MAX_NESTING:
        raise _malformed(f"is nested more than {MAX_NESTING} levels deep")
    return value


def _reason(error: msgspec.DecodeError, body: bytes) -> str:
    lone = _LONE_SURROGATE.search(body)
    if lone is not None:
        return f"holds half a UTF-16 surrogate pair (byte {lone.end() - 6})"
    text = str(error).partition(" - at ")[0]
    if "truncated" in text:
        return f"ends too early (byte {len(body)})" if body else "is empty; send a JSON object"
    return "is malformed: " + text.removeprefix("JSON is malformed: ")


def _malformed(reason: str) -> SglError:
    return SglError(f"The request body {reason}.", code="invalid_json")


def _nesting(value: Any) -> int:
    depth, level = 0, [value] if isinstance(value, dict | list) else []
    while level and depth <= MAX_NESTING:
        depth += 1
        items = (item for node in level for item in (node.values() if isinstance(node, dict) else node))
        level = [item for item in items if isinstance(item, dict | list)]
    return depth


def _name(value: Any) -> str:
    names: Mapping[type, str] = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
