"""What surrounds every answer: a request id, a line in the access log, a count, the rendering of what was raised."""

from __future__ import annotations

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl.engine.base import ledger, log
from sgl.engine.base.errors import SglError
from sgl.server.auth import route_of
from sgl.server.errors import body_of, error_response, internal_error
from sgl.server.observer import Meter, NullMeter

logger = logging.getLogger(__name__)
access_log = logging.getLogger(log.HTTP_LOGGER)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LINE = '%s:%d "%s %s" %d %.3fs %s'
_NO_ROUTE = "unknown"  # for the metrics: what clients ask for must not become a label
_CLIENT_GONE = 499  # as in nginx's log: the client closed the connection before an answer began


class Envelope:
    """ASGI middleware; see the module. No exception of an application gets past it."""

    def __init__(self, app: ASGIApp, meter: Meter | None = None) -> None:
        self._app = app
        self._meter = meter or NullMeter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        log.request_id.set(request_id)
        route = route_of(scope)
        endpoint = _NO_ROUTE if route is None else route.path
        self._meter.began(endpoint, scope["method"])
        status, started_s = _CLIENT_GONE, time.monotonic()
        passage = ledger.Passage(started_s)
        ledger.passage.set(passage)

        async def stamped_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        async def fail(error: SglError) -> None:
            if status == _CLIENT_GONE:  # else an answer has begun, and only the closed connection can tell
                await error_response(error, body=body_of(scope))(scope, receive, stamped_send)

        try:
            await self._app(scope, receive, stamped_send)
        except SglError as error:
            await fail(error)
        except ClientDisconnect:  # before the whole request was there
            logger.debug("Request %s was cut off", request_id)
        except Exception:
            logger.exception("Request %s failed", request_id)
            await fail(internal_error(request_id))
        finally:
            self._meter.ended(endpoint, scope["method"], status)
            host, port = scope.get("client") or ("-", 0)
            passage.sent_s = time.monotonic()
            took_s = passage.sent_s - started_s
            path = quote(scope["path"])  # a line is a line, whatever the path holds
            access_log.info(_LINE, host, port, scope["method"], path, status, took_s, request_id)
