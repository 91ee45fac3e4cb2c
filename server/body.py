"""Turns a request body into typed values, within limits; every refusal says where the body is wrong.

Bounds its size while it arrives (`BodyLimit`), its nesting before anything is built from it, and its types. Knows no
route.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl.engine.api.limits import type_error
from sgl.engine.base.errors import SglError

T = TypeVar("T")
MAX_NESTING = 64
MAX_CONTAINERS = MAX_STRINGS = 200_000
"""Most arrays and objects of a body, and most texts: empty ones take fifty times the memory of their two bytes."""
MAX_OTHER_BYTES = 2**22
"""Most bytes of one request beside what the model reads: a schema of megabytes is not worth decoding to refuse it."""
_READ_FIELDS = frozenset(
    (
        *("text", "input_ids", "input_embeds", "prompt", "messages", "system", "input", "instructions", "tokens"),
        *("query", "documents", "items", "text_1", "text_2"),
        "image_data",  # which is refused for what it is
    )
)
_LISTED_FIELDS = frozenset(
    (
        *("sampling_params", "rid", "session_params", "custom_logit_processor", "token_ids_logprob"),
        *("return_logprob", "logprob_start_len", "top_logprobs_num", "return_hidden_states", "return_receipt"),
    )
)
"""Those that may hold an entry for each prompt: thousands of grammars or lists of ids are no single large one."""
_LINGER_S = 5.0
_FORM_BYTES = 2**17  # what a form may take beside the file in it
_LARGE_BYTES = 2**20
"""Bodies of this size are decoded beside the event loop, in steps of a few milliseconds each."""
_STEP_BYTES = 2**18
"""Taken at once of a large body: one call holds Python's lock to its end, and so holds up every stream."""
_MAX_ITEMS = 2**18  # of an array that is taken apart
_MAX_SHOWN_CHARS = 200
_MAX_SEARCHED_BYTES = 2**18
_TAIL_BYTES = 64
_BLANKS = b" \t\r\n"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_JSON_TYPE = re.compile(r"[\w.-]+/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)
_LONE_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F]..)")


class BodyLimit:
    """ASGI middleware that refuses a body of more than ``max_bytes`` with 413 as soon as that is known.

    Paths in ``uploads`` have a limit of their own: their bodies are forms with a file of so many bytes.

    The refusal is sent at once; what the client still sends is then thrown away for a few seconds, since closing the
    socket on a client that is writing would lose the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: Mapping[str, int] = MappingProxyType({})) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._uploads = {path: num_bytes + _FORM_BYTES for path, num_bytes in uploads.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._uploads.get(scope["path"], self._max_bytes)
        option = "--max-file-bytes" if scope["path"] in self._uploads else "--max-body-bytes"
        declared = Headers(scope=scope).get("content-length", "0")
        num_declared = int(declared[:19]) if declared.isdecimal() else 0
        seen = num_declared if num_declared > limit else 0
        refused = False

        async def limited_receive() -> Message:
            nonlocal seen, refused
            if seen <= limit:
                message = await receive()
                seen += len(message.get("body", b""))
            if seen > limit:
                refused = True
                text = f"The request body is larger than {limit} bytes (see {option})."
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
        SglError: 400 with the byte at which the JSON is malformed, 413 from `BodyLimit`, 415 for what is no plain JSON.
    """
    _check_headers(request.headers)
    body = await request.body()
    value = _decode(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(_decode, body)
    if not isinstance(value, dict):
        raise _malformed(f"must be a JSON object, not {_name(value)}")
    return value


def convert(value: Mapping[str, Any], to: type[T], prefix: str = "") -> T:
    """A decoded object as a msgspec struct.

    Args:
        prefix: the field that holds the object, if it is not the whole body.

    Raises:
        SglError: 400 naming the field by its dotted path.
    """
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        raise type_error(error, prefix) from None


def _check_headers(headers: Headers) -> None:
    """Any other type than JSON is refused: a page of another site can make a browser send those, but not JSON.

    No type, and what `curl -d` calls a form where it is not told otherwise, is fine, unless it comes from a browser.
    """
    kind = headers.get("content-type", "").strip()
    is_curls = kind in ("", "application/x-www-form-urlencoded") and "origin" not in headers
    if not is_curls and not _JSON_TYPE.fullmatch(kind):
        raise _unsupported(f"The body must be JSON: send `Content-Type: application/json`, not {kind!r:.80}.")
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise _unsupported(f"The body must not be compressed, but has `Content-Encoding: {encoding:.40}`.")


def _decode(body: bytes) -> Any:
    outside = _outside(body)
    num_containers = _check_structure(outside.translate(None, _NO_BRACKETS))
    if len(body) >= _LARGE_BYTES:
        _check_others(body)
    try:
        value = _in_steps(body)
    except (UnicodeDecodeError, msgspec.DecodeError):
        value = _at_once(body)  # which knows the byte
    if _num_members(value, num_containers) < outside.count(b":"):
        raise _repeated(body)
    return value


def _check_others(body: bytes) -> None:
    """Refuses what is long beside the fields that may be; what stands behind the same name again is never decoded."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (UnicodeDecodeError, msgspec.DecodeError):
        return  # which is told better by who decodes all of it
    sizes = {name: _size(name, member) for name, member in members.items() if name not in _READ_FIELDS}
    if sum(sizes.values()) > MAX_OTHER_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        name = largest[:_MAX_SHOWN_CHARS] if sizes[largest] > MAX_OTHER_BYTES else None
        where = "The" if name is None else f"`{name}` is too large: the"
        text = f"{where} fields beside the prompt must have at most {MAX_OTHER_BYTES} bytes together."
        raise SglError(text, code="fields_too_large", param=name)


def _size(name: str, member: msgspec.Raw) -> int:
    """Bytes of a member that count: of a list with an entry for each prompt at most what one entry has."""
    view = memoryview(member)
    if name not in _LISTED_FIELDS or bytes(view[:1]) != b"[":
        return len(view)
    if name != "sampling_params":
        return 0  # numbers and short texts, which their own limits bound
    try:
        entries = msgspec.json.decode(member, type=list[dict[str, msgspec.Raw] | None])
    except (UnicodeDecodeError, msgspec.DecodeError):
        return len(view)
    return max((sum(len(memoryview(value)) for value in entry.values()) for entry in entries if entry), default=0)


def _at_once(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise _malformed(f"is not valid UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        raise _malformed(_reason(error, body)) from None


def _in_steps(part: bytes | msgspec.Raw) -> Any:
    """As `_at_once`, but a large object or array is taken apart, and its parts are decoded one by one."""
    view = memoryview(part)
    if len(view) > _STEP_BYTES:
        start = bytes(view[:64]).translate(None, _BLANKS)
        if start.startswith(b"{"):
            members = msgspec.json.decode(part, type=dict[str, msgspec.Raw])
            return {name: _in_steps(member) for name, member in members.items()}
        if start.startswith((b"[{", b"[[")) and bytes(view).count(b",") < _MAX_ITEMS:
            return [_in_steps(item) for item in msgspec.json.decode(part, type=list[msgspec.Raw])]
    return msgspec.json.decode(part)


def _outside(body: bytes) -> bytes:
    """What stands outside strings, the last of which may lack its end."""
    found: list[bytes] = []
    num_quotes, begin = 0, 0
    while begin < len(body):
        piece = body[begin : begin + _STEP_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # a backslash stays with what it escapes
            piece = body[begin : begin + _STEP_BYTES + 1]
        bare = piece.replace(b"\\\\", b"").replace(b'\\"', b"")  # one outside ends what is read anyway
        parts = bare.split(b'"')
        found += parts[num_quotes % 2 :: 2]
        num_quotes, begin = num_quotes + len(parts) - 1, begin + len(piece)
        if num_quotes > 2 * MAX_STRINGS:
            raise _malformed(f"holds more than {MAX_STRINGS} strings")
    return b"".join(found)


def _check_structure(brackets: bytes) -> int:
    """Refuses what would take much time or memory to decode; how many arrays and objects there are."""
    num_containers = brackets.count(b"[") + brackets.count(b"{")
    if num_containers > MAX_CONTAINERS:
        raise _malformed(f"holds more than {MAX_CONTAINERS} arrays and objects")
    if num_containers > MAX_NESTING and max(accumulate(map(_STEPS.__getitem__, brackets))) > MAX_NESTING:
        raise _malformed(f"is nested more than {MAX_NESTING} levels deep")
    return num_containers


def _reason(error: msgspec.DecodeError, body: bytes) -> str:
    text = str(error).partition(" - at ")[0]
    is_cut = "truncated" in text  # also said of half a pair that is followed by less than another half
    lone = None
    if is_cut or "surrogate" in text:
        lone = _LONE_SURROGATE.search(body, max(len(body) - _TAIL_BYTES, 0) if is_cut else 0)
    if lone is not None:
        return f"holds half a UTF-16 surrogate pair (byte {lone.end() - 6})"
    if is_cut:
        return f"ends too early (byte {len(body)})" if body else "is empty; send a JSON object"
    return "is malformed: " + text.removeprefix("JSON is malformed: ")


def _malformed(reason: str) -> SglError:
    return SglError(f"The request body {reason}.", code="invalid_json")


def _unsupported(message: str) -> SglError:
    return SglError(message, code="unsupported_media_type", status=415)


def _num_members(value: Any, num_containers: int) -> int:
    """Names in all objects of a decoded value, each once an object; looks no further once all containers are found."""
    num_members, found = 0, [value] if isinstance(value, dict | list) else []
    for node in found:  # which grows meanwhile
        num_members += len(node) if isinstance(node, dict) else 0
        if len(found) < num_containers:
            items = node.values() if isinstance(node, dict) else node
            found += [item for item in items if type(item) is dict or type(item) is list]
    return num_members


def _repeated(body: bytes) -> SglError:
    """The refusal of a body that gives a name twice in one object: which of the values is meant is anyone's guess."""
    if len(body) > _MAX_SEARCHED_BYTES:
        return _malformed("gives a name more than once in one object")
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return {}

    json.loads(body, object_pairs_hook=note)
    name = repeated[0][:_MAX_SHOWN_CHARS]
    return SglError(f"The request body gives `{name}` more than once.", code="invalid_json", param=name)


def _name(value: Any) -> str:
    names: Mapping[type, str] = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
