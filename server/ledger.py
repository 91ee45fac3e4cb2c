"""Routes that say where the time of requests went. Who may see the names of other requests is decided here."""

from __future__ import annotations

import heapq
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.api.explanation import Explanation, Explanations, Listed, Listing, explain
from sgl.engine.base.errors import SglError
from sgl.server.auth import holds_key
from sgl.server.errors import JsonResponse
from sgl.server.state import ServerState, state_of

_MAX_LISTED = 1000


class ListQuery(msgspec.Struct):
    """
    Args:
        slowest: how many.
    """

    slowest: int = 10


async def one(request: Request) -> Response:
    """Where the time of a request went, while it runs or after; other requests have names for administrators only."""
    state = _with_ledgers(state_of(request))
    rid = request.path_params["rid"]
    book = state.engine.ledgers
    found = book.find(rid)
    if not found:
        kept = f"of {state.config.observe.request_ledger_size} finished ones (--request-ledger-size)"
        raise SglError(f"There is no ledger of a request {rid!r:.200} among those that run, or {kept}.", status=404)
    is_admin = holds_key(request.headers, state.config.serve.admin_api_key)
    namer = _own_name if is_admin else _Anonymous()
    return JsonResponse(Explanations(rid, [explain(ledger, book, namer) for ledger in found]))


async def listing(request: Request) -> Response:
    """The slowest of the requests that run or have run lately."""
    book = _with_ledgers(state_of(request)).engine.ledgers
    count = request.query_params.get("slowest", str(ListQuery().slowest))
    if not count.isdecimal() or not 1 <= int(count) <= _MAX_LISTED:
        raise SglError(f"slowest must be between 1 and {_MAX_LISTED}, got {count!r:.20}.", param="slowest")
    every = book.everything()
    now_s = time.monotonic()
    slowest = heapq.nlargest(int(count), every, key=lambda one: one.end_s(now_s) - one.passage.received_s)
    told = [explain(ledger, book, _own_name) for ledger in slowest]
    return JsonResponse(Listing(len(every), [_listed(one) for one in told]))


def _with_ledgers(state: ServerState) -> ServerState:
    """
    Raises:
        SglError: 404; none are kept.
    """
    if not state.engine.ledgers.is_on:
        raise SglError("No ledgers are kept: the server runs with --request-ledger-size 0.", status=404)
    return state


def _own_name(wire_rid: str) -> str:
    """The engine's name of a request has a number behind it."""
    return wire_rid.rpartition("#")[0]


class _Anonymous:
    """Numbers requests in the order in which they are spoken of."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, wire_rid: str) -> str:
        return f"request {self._numbers.setdefault(wire_rid, len(self._numbers) + 1)}"


def _listed(found: Explanation) -> Listed:
    largest = max(found.parts, key=found.parts.__getitem__)
    return Listed(
        rid=found.rid,
        state=found.state,
        total_ms=found.total_ms,
        first_token_ms=found.first_token_ms,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        largest=largest,
        largest_ms=found.parts[largest],
        alone_ms=found.alone.total_ms,
    )
