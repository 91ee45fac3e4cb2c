"""`/v1/schema/check`: what of a JSON schema would be enforced. Generates nothing."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api.schema import check_schema
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.state import state_of


class CheckBody(msgspec.Struct, kw_only=True):
    """
    Args:
        schema: the JSON schema, as an object or as text.
        backend: the library that would enforce it; the server's if not given.
    """

    schema: dict[str, Any] | bool | str
    backend: Literal["auto", "native", "llguidance", "xgrammar", "outlines"] | None = None


class Keyword(msgspec.Struct):
    """What becomes of one keyword; ``note`` says how it is approximated or why it is not supported."""

    pointer: str
    keyword: str
    status: Literal["enforced", "approximated", "unsupported"]
    note: str | None


class Report(msgspec.Struct):
    """
    Args:
        supported: whether a request with this schema would be taken.
        max_tokens: no output has more tokens; null if there is no such number.
        error: what the library has against a schema whose keywords it knows.
    """

    supported: bool
    backend: str
    keywords: list[Keyword]
    max_tokens: int | None
    error: str | None


async def check(request: Request) -> Response:
    """Each keyword with its JSON pointer: enforced, approximated or unsupported; and the longest output."""
    config = state_of(request).config.grammar
    body = convert(await read_object(request), CheckBody)
    source = body.schema if isinstance(body.schema, str) else msgspec.json.encode(body.schema).decode()
    report = await asyncio.to_thread(check_schema, source, body.backend or _able(config.grammar_backend))
    keywords = [Keyword(item.pointer, item.keyword, item.status, item.note or None) for item in report.findings]
    longest = None if config.constrained_json_whitespace_pattern else report.max_tokens
    answer = Report(report.is_supported, report.backend, keywords, longest, report.error or None)
    return JsonResponse(msgspec.to_builtins(answer))


def _able(configured: str) -> Any:
    """The server's backend; where it has none, the one that it would have."""
    return "auto" if configured == "none" else configured
