"""Renders every error as OpenAI's error body. Decides nothing about when a request fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
_ROUTING_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed"}


def error_body(error: SglError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``, the form of both APIs."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, fallback)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: SglError, headers: Mapping[str, str] | None = None) -> Response:
    """The whole answer to a request that failed before its answer began."""
    extra = dict(headers or {})
    if error.retryable and error.status in (429, 503):
        extra["retry-after"] = "1"
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    return JsonResponse(error_body(error), error.status, extra)


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


_SENTENCE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (?P<problem>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_PROBLEMS: Mapping[str, str] = {
    "contains unknown": "is not a known field",
    "missing required": "is required",
}
_MAX_SHOWN_CHARS = 200


def validation_error(error: msgspec.ValidationError) -> SglError:
    """A type error of msgspec as a sentence that names the field by its dotted path."""
    found = _SENTENCE.fullmatch(str(error))
    assert found is not None
    path, what = (found["path"] or "").removeprefix("."), found["what"]
    named = _NAMED.fullmatch(what)
    if named is not None:
        path, what = f"{path}.{named['name']}".removeprefix("."), _PROBLEMS[named["problem"]]
    shown = path[:_MAX_SHOWN_CHARS]
    subject = f"`{shown}`" if shown else "The request body"
    joined = " " if named is not None else ": "
    text = f"{subject}{joined}{what[:1].lower()}{what[1:_MAX_SHOWN_CHARS]}."
    return SglError(text, code="invalid_type" if named is None else "invalid_field", param=shown or None)
