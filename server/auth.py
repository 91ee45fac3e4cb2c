"""Decides who may call a route. A path whose route has no level is refused, whoever asks."""

from __future__ import annotations

import enum
import hmac
import inspect
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sgl.engine.base.errors import SglError
from sgl.server.errors import ErrorBody, error_body


class Level(enum.Enum):
    """Who may call a route."""

    OPEN = "open"  # anyone: probes and metrics
    API = "api"  # holders of the API key, anyone where none is set
    ADMIN = "admin"  # holders of the admin key; of the API key where no admin key is set


class GuardedRoute(Route):
    """A route with an explicit level; ``body`` is the type of its JSON body, for `/openapi.json`.

    Args:
        error_body: how its API writes errors.
        answer, query, form: the types of its JSON answer, of the query in its URL, and of its body if that is no JSON
            but a form; for `/openapi.json`, too.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        methods: Sequence[str],
        level: Level,
        body: type[Any] | None = None,
        error_body: ErrorBody = error_body,
        answer: Any = None,
        query: type[Any] | None = None,
        form: type[Any] | None = None,
    ) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        if self.methods is not None and "POST" in methods:
            self.methods.discard("HEAD")  # starlette adds it to GET; here GET may change something
        # `$` would also match before a line break, so that `/generate%0A` were `/generate`
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")
        self.level = level
        self.body = body
        self.error_body = error_body
        self.answer = answer
        self.query = query
        self.form = form

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (inspect.getdoc(self.endpoint) or "").partition("\n")[0]


class Auth:
    """ASGI middleware that compares keys in constant time, and tells the `Envelope` how to write errors.

    Args:
        api_key, admin_key: empty where not set.
        hosts: by which names the server may be called without a key; None for any.
    """

    def __init__(self, app: ASGIApp, api_key: str, admin_key: str, hosts: frozenset[str] | None = None) -> None:
        self._app = app
        self._hosts = hosts
        self._accepted: Mapping[Level, tuple[bytes, ...]] = {
            Level.OPEN: (),
            Level.API: _encoded(api_key, admin_key) if api_key else (),
            Level.ADMIN: _encoded(admin_key or api_key),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        level, headers = _level(route_of(scope), scope["path"]), Headers(scope=scope)
        accepted = self._accepted[level]
        if accepted and not _matches(headers, accepted):
            message = "A valid key is needed: send it as `Authorization: Bearer <key>` or as `x-api-key: <key>`."
            raise SglError(message, code="invalid_api_key", status=401)
        if not accepted and level is not Level.OPEN and not _is_own_site(headers):
            raise SglError("Pages of other sites must not use this server without a key.", code="forbidden", status=403)
        if not accepted and level is not Level.OPEN and not _is_own_name(headers.get("host", ""), self._hosts):
            message = "This server must not be called by that name without a key; see --allowed-host."
            raise SglError(message, code="forbidden", status=403)
        await self._app(scope, receive, send)


def own_names(bind: str, allowed: Iterable[str]) -> frozenset[str] | None:
    """The names of a server that listens at ``bind``: None, any, if that can be reached from elsewhere.

    What listens for this machine alone has no other names. So a page whose name was made to point here after it was
    loaded (DNS rebinding), which a browser then takes for the server's own, is told from the server's own.
    """
    address = _address(bind)
    if bind != "localhost" and (address is None or not address.is_loopback):
        return None
    return frozenset(name.lower() for name in ("localhost", *allowed))


def _is_own_name(host: str, names: frozenset[str] | None) -> bool:
    """Whether a ``Host`` header names this server; an address always does, since it cannot be made to point here."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return names is None or not name or name.lower() in names or _address(name) is not None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def route_of(scope: Scope) -> Route | None:
    """The route that will answer, None for an unknown path; looked up once a request."""
    state = scope.setdefault("state", {})
    if "route" not in state:
        matches = [(route.matches(scope)[0], route) for route in scope["app"].routes]
        whole = (route for match, route in matches if match is Match.FULL)
        other_methods = (route for match, route in matches if match is Match.PARTIAL)
        state["route"] = route = next(whole, next(other_methods, None))  # as the router chooses
        if isinstance(route, GuardedRoute):
            state["error_body"] = route.error_body
    found: Route | None = state["route"]
    return found


def _level(route: Route | None, path: str) -> Level:
    """The level of a route; an unknown path is treated like the API (it becomes a 404)."""
    if route is None:
        return Level.API
    if not isinstance(route, GuardedRoute):
        raise SglError(f"{path} has no access level.", code="forbidden", status=403)
    return route.level


def _is_own_site(headers: Headers) -> bool:
    """Whether no other site's page sent this: browsers send forms, and what has no body, without asking first.

    They say from where: by ``Sec-Fetch-Site`` over TLS and to localhost, else by ``Origin`` alone.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("none", "same-origin")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def holds_key(headers: Headers, key: str) -> bool:
    """Whether a request carries that key, or no such key is set."""
    return not key or _matches(headers, _encoded(key))


def _encoded(*keys: str) -> tuple[bytes, ...]:
    return tuple(key.encode() for key in keys if key)


def _matches(headers: Headers, accepted: tuple[bytes, ...]) -> bool:
    """Whether a key is among those accepted: OpenAI's clients send a bearer token, Anthropic's ``x-api-key``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    given = [key.encode("latin-1") for key in (bearer, headers.get("x-api-key", ""))]  # how header bytes were decoded
    # every key is compared, so that the time tells nothing about which one came close
    found = [hmac.compare_digest(key, wanted) for key in given for wanted in accepted]
    return any(found)
