"""The limits of request bodies and the sentences that name what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Scope

from sgl.engine.base.errors import SglError
from sgl.server import body
from sgl.server.body import (
    MAX_CONTAINERS,
    MAX_NESTING,
    MAX_OTHER_BYTES,
    MAX_STRINGS,
    BodyLimit,
    convert,
    read_object,
)
from sgl.server.envelope import Envelope
from sgl.server.errors import JsonResponse

LIMIT = 1000


async def _echo(request: Request) -> JsonResponse:
    return JsonResponse(await read_object(request))


def _app() -> Starlette:
    middleware = [Middleware(BodyLimit, max_bytes=LIMIT), Middleware(Envelope)]
    return Starlette(routes=[Route("/echo", _echo, methods=["POST"])], middleware=middleware)


def _post(content: Any, **kwargs: Any) -> httpx.Response:
    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/echo", content=content, **kwargs)

    return asyncio.run(post())


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "is empty"),
        (b'{"a": [1, 2', "ends too early (byte 11)"),
        (b'{"a":1,}', "trailing comma in object (byte 7)"),
        (b'{"a":1} x', "trailing characters (byte 9)"),
        (b"{'a':1}", "(byte 1)"),
        (b'{"a":NaN}', "(byte 5)"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":"\x00"}', "(byte 6)"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"a":"\\ud800"}', "half a UTF-16 surrogate pair (byte 6)"),
        (b'{"a":"x\\udc00y"}', "half a UTF-16 surrogate pair (byte 7)"),
        (b"[1]", "must be a JSON object, not an array"),
        (b'"text"', "not a string"),
        (b"7", "not a number"),
        (b"null", "not null"),
        (b'{"a":' * (MAX_NESTING + 1) + b"1" + b"}" * (MAX_NESTING + 1), "nested more than 64 levels"),
        (b'\xef\xbb\xbf{"a":1}', "(byte 0)"),
        (b'{"a":1,"a":1}', "gives `a` more than once"),
        (b'{"a":[{"b":"x:y"},{"c":1,"\\u0063":2}]}', "gives `c` more than once"),
        (b'{"a":"' + b"x" * 900 + b'\\ud800"}', "half a UTF-16 surrogate pair (byte 906)"),
    ],
)
def test_malformed_bodies_are_refused_by_position(body: bytes, part: str) -> None:
    response = _post(body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_json"


def test_nesting_far_beyond_the_parsers_stack_is_refused() -> None:
    async def read() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"[" * 10**5, "more_body": False}

        scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await read_object(Request(scope, receive))

    with pytest.raises(SglError, match="levels deep"):
        asyncio.run(read())


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"a":[' + b"[]," * MAX_CONTAINERS + b"1]}", f"more than {MAX_CONTAINERS} arrays and objects"),
        (b'{"a":[' + b'"",' * MAX_STRINGS + b"1]}", f"more than {MAX_STRINGS} strings"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 levels"),
        (b'{"a":"' + b'\\"' * 10**6, "ends too early"),
        (b'{"a":' + b":" * 10**6, "is malformed"),
    ],
    ids=["containers", "strings", "levels", "open string", "colons"],
)
def test_what_takes_much_to_decode_is_refused_before(body: bytes, part: str) -> None:
    async def read() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await read_object(Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive))

    with pytest.raises(SglError, match=part):
        asyncio.run(read())


def test_brackets_and_colons_in_strings_do_not_count() -> None:
    text = '[{"' * 80 + "\\" + ": a"
    assert _post(json.dumps({"a": text, "b": {"a": [{"a": text}, {}]}}).encode()).json()["a"] == text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({"content-encoding": "identity"}, 200),
        ({"content-type": "text/plain"}, 415),  # what a page of another site can send without asking
        ({"content-type": "application/x-www-form-urlencoded"}, 200),  # `curl -d '{...}'`, as SGLang's examples have it
        ({"content-type": "application/x-www-form-urlencoded", "origin": "https://example.com"}, 415),
        ({"content-type": "application/x-www-form-urlencoded", "origin": "null"}, 415),
        ({"origin": "https://example.com"}, 415),
        ({"content-type": "application/json", "origin": "https://example.com"}, 200),
        ({"content-type": "application/jsonp"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity, br"}, 415),
    ],
)
def test_only_plain_json_is_read(headers: dict[str, str], status: int) -> None:
    response = _post(b'{"a":1}', headers=headers)
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == "unsupported_media_type"


def test_deepest_allowed_body_and_surrogate_pairs_pass() -> None:
    deep = b'{"a":' * MAX_NESTING + b"1" + b"}" * MAX_NESTING
    assert _post(deep).status_code == 200
    assert _post(b'{"a":"\\ud83d\\ude00"}').json() == {"a": "\U0001f600"}
    assert _post(b'{"a":"\\\\ud800"}').json() == {"a": "\\ud800"}


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    response = _post(b"x" * (LIMIT + 1))
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert response.json()["error"]["code"] == "body_too_large"
    assert str(LIMIT) in response.json()["error"]["message"]


def test_a_body_of_unknown_length_is_refused_once_it_exceeds_the_limit() -> None:
    num_received = 0
    sent: list[tuple[Message, int]] = []

    async def receive() -> Message:
        nonlocal num_received
        num_received += 1
        return {"type": "http.request", "body": b"x" * 400, "more_body": num_received < 6}

    async def send(message: Message) -> None:
        sent.append((message, num_received))

    scope: Scope = {"type": "http", "method": "POST", "path": "/echo", "headers": [], "query_string": b""}
    asyncio.run(_app()(scope, receive, send))
    (start, _), (body, received_at_answer), (end, _) = sent
    assert start["status"] == 413
    assert received_at_answer == 3  # the answer goes out as soon as the limit is passed
    assert body["more_body"] and not end["more_body"]
    assert num_received == 6  # what the client still sends is thrown away before the connection closes


def test_a_body_at_the_limit_passes() -> None:
    body = b'{"a":"' + b"x" * (LIMIT - 8) + b'"}'
    assert len(body) == LIMIT
    assert _post(body).status_code == 200


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_numbers_without_end_are_refused(number: bytes) -> None:
    error = _post(b'{"a": [' + number + b"]}").json()["error"]
    assert (error["code"], "out of range" in error["message"], "$" in error["message"]) == ("invalid_json", True, False)


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    count: int = 0


class _Outer(msgspec.Struct):
    name: str
    inner: _Inner | None = None
    items: list[_Inner] = []


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ({}, "name", "`name` is required."),
        ({"name": 1}, "name", "`name`: expected `str`, got `int`."),
        ({"name": "", "inner": {"count": "x"}}, "inner.count", "`inner.count`: expected `int`, got `str`."),
        ({"name": "", "inner": {"cuont": 1}}, "inner.cuont", "`inner.cuont` is not a known field."),
        ({"name": "", "items": [{}, {"count": 1.5}]}, "items[1].count", None),
        ({"name": "", "items": [{}, {"count": True}]}, "items[1].count", None),
        ({"name": "", "inner": []}, "inner", None),
        ({"name": "", "inner": {"x" * 10**6: 1}}, ("inner." + "x" * 194), None),
    ],
)
def test_wrong_types_are_refused_by_dotted_path(value: dict[str, Any], param: str, message: str | None) -> None:
    with pytest.raises(SglError) as caught:
        convert(value, _Outer)
    assert caught.value.param == param
    assert message is None or caught.value.message == message


def test_a_large_body_is_decoded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the loop to go on cannot have been called on it."""
    decode, loop_went_on = body._decode, threading.Event()

    def waiting(content: bytes) -> Any:
        assert loop_went_on.wait(60), "the loop stands still meanwhile"
        return decode(content)

    async def read() -> dict[str, Any]:
        asyncio.get_running_loop().call_later(0.05, loop_went_on.set)
        return await read_object(_request(content))

    monkeypatch.setattr(body, "_decode", waiting)
    content = b'{"text": "' + b"x" * (2 << 20) + b'"}'
    assert len(asyncio.run(read())["text"]) == 2 << 20


_LONG = b'"' + b"x" * MAX_OTHER_BYTES + b'"'
_HALF = b'"' + b"x" * (MAX_OTHER_BYTES // 2) + b'"'


def _forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(body, name, lambda content: pytest.fail("decoded"))


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"regex":' + _LONG + b"}", "regex"),
        (b'{"text":' + _LONG + b',"sampling_params":{"json_schema":{"title":' + _LONG + b"}}}", "sampling_params"),
        (b'{"sampling_params":[null,{"n":1,"regex":' + _LONG + b"}]}", "sampling_params"),
        (b'{"sampling_params":[{"json_schema":{"title":' + _LONG + b"}},1]}", "sampling_params"),
        (b'{"tools":[' + _LONG + b"]}", "tools"),
        (b'{"model":' + _HALF + b',"tools":{"a":' + _HALF + b"}}", None),
    ],
    ids=["grammar", "within", "of one prompt", "among what is none", "list", "together"],
)
def test_what_is_large_and_no_prompt_is_not_decoded(
    content: bytes, param: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid(monkeypatch, "_in_steps", "_at_once")
    with pytest.raises(SglError, match=f"at most {MAX_OTHER_BYTES} bytes together") as refused:
        asyncio.run(read_object(_request(content)))
    error = refused.value
    assert (error.status, error.code, error.param) == (400, "fields_too_large", param)
    assert error.message.startswith(f"`{param}` is too large: the" if param else "The")


def test_many_members_are_refused_before_any_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid(monkeypatch, "_check_others", "_in_steps", "_at_once")
    content = b"{" + b",".join(b'"%d":1' % number for number in range(MAX_STRINGS + 1)) + b"}"
    assert len(content) > 2**20
    with pytest.raises(SglError, match=f"more than {MAX_STRINGS} strings"):
        asyncio.run(read_object(_request(content)))


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["a"] * 9, "sampling_params": [*[{"regex": "x" * 2**19}] * 9, None, {}]},
        {"text": ["a"] * 2, "token_ids_logprob": [[7] * 2**20] * 2},
        {"text": "", "image_data": "x" * MAX_OTHER_BYTES},
    ],
    ids=["sampling", "ids", "image"],
)
def test_what_is_large_with_reason_is_left_to_its_own_checks(value: dict[str, Any]) -> None:
    content = json.dumps(value).encode()
    assert len(content) > MAX_OTHER_BYTES
    assert asyncio.run(read_object(_request(content))) == value


def test_what_blanks_and_repeated_names_take_is_no_fields_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(read_object(_request(b'{"text":""' + b" " * MAX_OTHER_BYTES + b"}"))) == {"text": ""}
    _forbid(monkeypatch, "_at_once")
    for name in (b"messages", b"regex"):
        content = b'{"model":"m","' + name + b'":' + _LONG + b',"' + name + b'":""}'
        with pytest.raises(SglError, match="gives a name more than once"):
            asyncio.run(read_object(_request(content)))


@pytest.mark.parametrize(
    "content",
    [b"[" * 2**20, b'{"regex":' + _LONG, b"[" + _LONG + b"]"],
    ids=["brackets", "cut", "array"],
)
def test_what_is_large_and_no_object_is_refused_as_such(content: bytes) -> None:
    with pytest.raises(SglError, match=r"arrays and objects|ends too early|must be a JSON object"):
        asyncio.run(read_object(_request(content)))


def test_brackets_and_quotes_within_strings_do_not_count() -> None:
    inside = "[{" * MAX_NESTING + '\\"' * 7 + "\\" + ":" * 9
    content = json.dumps({"a": [inside, {"b": inside, inside: '"'}], "c": "\\"}).encode()
    assert body._outside(content) == b"{: [, {: , : }], : }"
    assert asyncio.run(read_object(_request(content)))["a"][0] == inside


def _request(content: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    return Request(scope, receive)


def _large(rng: random.Random, depth: int = 0) -> Any:
    """Objects and arrays with texts full of quotes, backslashes, brackets and colons."""
    kind = rng.randrange(4 if depth < 5 else 2)
    if kind == 0:
        return rng.choice([None, True, -1.5e-3, 2**60, rng.random()])
    if kind == 1:
        return "".join(rng.choices('\\"[]{}:,aé日\U0001f600\n', k=rng.randrange(40)))
    items = [_large(rng, depth + 1) for _ in range(rng.randrange(12))]
    return items if kind == 2 else {f"{i}{rng.choice(['', chr(34), chr(92)])}": item for i, item in enumerate(items)}


@pytest.mark.parametrize("step_bytes", [1, 2, 3, 7, 64, 1000])
def test_a_body_that_is_taken_apart_is_read_as_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, step_bytes: int
) -> None:
    rng = random.Random(step_bytes)
    for indent in (None, 1) * 60:
        value = {"a": _large(rng), "b": [{"x": _large(rng)}, *rng.choices([{}, [], 1, "y"], k=3)], "c": [[_large(rng)]]}
        content = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=indent).encode()
        outside = body._outside(content)
        with monkeypatch.context() as patch:
            patch.setattr(body, "_STEP_BYTES", step_bytes)
            assert body._outside(content) == outside
            assert body._decode(content) == json.loads(content)
            for broken in (content[: rng.randrange(len(content))], content.replace(b":", b";", 1)):
                with pytest.raises(SglError) as found:
                    body._decode(broken)
                patch.undo()
                with pytest.raises(SglError) as expected:
                    body._decode(broken)
                patch.setattr(body, "_STEP_BYTES", step_bytes)
                assert found.value.message == expected.value.message
