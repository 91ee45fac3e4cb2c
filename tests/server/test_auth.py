"""Keys, levels, and the refusal of routes that have none."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sgl.server.auth import Auth, GuardedRoute, Level, own_names
from sgl.server.envelope import Envelope


async def _ok(request: Request) -> Response:
    return Response("ok")


def _status(
    path: str,
    header: Any,
    api_key: str = "",
    admin_key: str = "",
    method: str = "GET",
    headers: Mapping[str, str] = MappingProxyType({}),
    hosts: frozenset[str] | None = None,
) -> int:
    async def get() -> int:
        sent = {**headers} if header is None else {**headers, "authorization": header}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.request(method, path, headers=sent)).status_code

    routes = [
        GuardedRoute("/open", _ok, ["GET"], Level.OPEN),
        GuardedRoute("/api", _ok, ["GET"], Level.API),
        GuardedRoute("/admin", _ok, ["GET"], Level.ADMIN),
        Route("/forgotten", _ok),
    ]
    keys = Middleware(Auth, api_key=api_key, admin_key=admin_key, hosts=hosts)
    app = Starlette(routes=routes, middleware=[Middleware(Envelope), keys])
    return asyncio.run(get())


@pytest.mark.parametrize(
    ("api_key", "admin_key", "given", "expected"),
    [  # expected: (open, api, admin)
        ("", "", None, (200, 200, 200)),
        ("", "", "Bearer None", (200, 200, 200)),
        ("k", "", None, (200, 401, 401)),
        ("k", "", "Bearer k", (200, 200, 200)),
        ("k", "", "bearer k", (200, 200, 200)),
        ("k", "", "Bearer kk", (200, 401, 401)),
        ("k", "", "Bearer None", (200, 401, 401)),
        ("k", "", "k", (200, 401, 401)),
        ("k", "", "Basic k", (200, 401, 401)),
        ("k", "", "Bearer ", (200, 401, 401)),
        ("k", "a", "Bearer k", (200, 200, 401)),
        ("k", "a", "Bearer a", (200, 200, 200)),
        ("", "a", None, (200, 200, 401)),
        ("", "a", "Bearer a", (200, 200, 200)),
        ("schlüssel", "", "Bearer schlüssel".encode(), (200, 200, 200)),
        ("k", "", b"Bearer \xff", (200, 401, 401)),
    ],
)
def test_levels(api_key: str, admin_key: str, given: str | None, expected: tuple[int, int, int]) -> None:
    found = [_status(path, given, api_key, admin_key) for path in ("/open", "/api", "/admin")]
    assert tuple(found) == expected


def test_a_route_without_a_level_is_refused_to_everyone() -> None:
    assert _status("/forgotten", None) == 403
    assert _status("/forgotten", "Bearer a", "k", "a") == 403


def test_unknown_paths_do_not_tell_strangers_what_exists() -> None:
    assert _status("/nothing", None, "k") == 401
    assert _status("/api", None, "k", method="DELETE") == 401
    assert _status("/nothing", "Bearer k", "k") == 404


def test_the_level_is_that_of_the_route_that_answers_the_method() -> None:
    """One path may have an open GET and an administrative POST, in any order."""

    async def statuses() -> list[int]:
        routes = [
            GuardedRoute("/x", _ok, ["GET"], Level.OPEN),
            GuardedRoute("/x", _ok, ["POST"], Level.ADMIN),
        ]
        keys = Middleware(Auth, api_key="k", admin_key="a")
        found = []
        for order in (routes, routes[::-1]):
            app = Starlette(routes=order, middleware=[Middleware(Envelope), keys])
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                found += [(await client.get("/x")).status_code, (await client.post("/x")).status_code]
        return found

    assert asyncio.run(statuses()) == [200, 401, 200, 401]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://test"}, 200),
        ({"origin": "https://example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://test"}, 403),
    ],
)
def test_pages_of_other_sites_need_a_key(headers: dict[str, str], status: int) -> None:
    assert _status("/open", None, headers=headers) == 200
    assert _status("/api", None, headers=headers) == _status("/admin", None, headers=headers) == status
    assert _status("/admin", "Bearer k", api_key="k", headers=headers) == 200


@pytest.mark.parametrize(
    ("host", "bind", "status"),
    [
        ("localhost:30000", "127.0.0.1", 200),
        ("LOCALHOST", "localhost", 200),
        ("127.0.0.1:30000", "127.0.0.1", 200),
        ("[::1]:30000", "::1", 200),
        ("192.168.0.7", "127.0.0.1", 200),
        ("proxy.example:80", "127.0.0.1", 200),
        ("evil.example:30000", "127.0.0.1", 403),
        ("localhost.evil.example", "127.0.0.1", 403),
        ("[evil.example]", "::1", 403),
        ("evil.example", "0.0.0.0", 200),
        ("evil.example", "gpu.example", 200),
    ],
)
def test_a_server_of_this_machine_alone_has_no_names_but_its_own(host: str, bind: str, status: int) -> None:
    names = own_names(bind, ["Proxy.example"])
    given = {"host": host, "origin": f"http://{host}"}
    assert _status("/api", None, headers=given, hosts=names) == status
    assert _status("/api", "Bearer k", "k", headers=given, hosts=names) == 200, "a key is enough"
    assert _status("/open", None, headers=given, hosts=names) == 200
