"""Renders every error: as OpenAI's error body, or as the route's own. Decides nothing about when a request fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sgl.engine.base.errors import SglError

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
ErrorBody = Callable[[SglError], dict[str, Any]]
"""How an API writes an error."""
_ROUTING_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed"}


def error_body(error: SglError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``, the form of both APIs."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, fallback)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def body_of(scope: MutableMapping[str, Any]) -> ErrorBody:
    """How errors of a request are written: as its route says, once that is known."""
    body: ErrorBody = scope.get("state", {}).get("error_body", error_body)
    return body


def error_response(error: SglError, headers: Mapping[str, str] | None = None, body: ErrorBody = error_body) -> Response:
    """The whole answer to a request that failed before its answer began."""
    extra = dict(headers or {})
    if error.retryable and error.status in (429, 503):
        extra["retry-after"] = "1"
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    return JsonResponse(body(error), error.status, extra)


class JsonResponse(Response):
    """A response whose body msgspec encodes (not-a-number becomes null)."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def routing_error(error: HTTPException, method: str, path: str) -> SglError:
    """Starlette's 404 or 405 as one of ours."""
    sentences = {
        404: f"There is nothing at {path}.",
        405: f"{path} does not answer {method}.",
    }
    message = sentences.get(error.status_code, str(error.detail))
    return SglError(message, code=_ROUTING_CODES.get(error.status_code, "http_error"), status=error.status_code)


def internal_error(request_id: str) -> SglError:
    """What a client learns about a bug of ours: where to find it in the log."""
    message = f"Internal error; the server's log has the details under request id {request_id}."
    return SglError(message, code="internal_error", status=500)
