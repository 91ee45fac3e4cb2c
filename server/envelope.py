"""What surrounds every answer: a request id, the access log line, and the rendering of whatever was raised."""

from __future__ import annotations

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl.engine.base.errors import SglError
from sgl.engine.base.log import HTTP_LOGGER
from sgl.server.errors import error_response, internal_error

logger = logging.getLogger(__name__)
access_log = logging.getLogger(HTTP_LOGGER)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LINE = '%s:%d "%s %s" %d %.3fs %s'
_CLIENT_GONE = 499  # as in nginx's log: the client closed the connection before an answer began


class Envelope:
    """ASGI middleware; see the module. No exception of an application gets past it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status, started_s = _CLIENT_GONE, time.monotonic()

        async def stamped_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        async def fail(error: SglError) -> None:
            if status == _CLIENT_GONE:  # else an answer has begun, and only the closed connection can tell
                await error_response(error)(scope, receive, stamped_send)

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
            host, port = scope.get("client") or ("-", 0)
            took_s = time.monotonic() - started_s
            path = quote(scope["path"])  # a line is a line, whatever the path holds
            access_log.info(_LINE, host, port, scope["method"], path, status, took_s, request_id)
