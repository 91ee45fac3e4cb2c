"""The ledgers of a running server's requests, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from msgspec import MsgspecError, json, structs

from sgl.engine.api.explanation import Explanation, Explanations, Listing, Piece
from sgl.engine.base.errors import SglError
from sgl.profiles.http import Connection


class Ledgers(Connection):
    """Of one server; all raise SglError where that refuses."""

    def of(self, rid: str) -> list[Explanation]:
        """Of every answer of a request."""
        return self.read(f"/requests/{quote(rid)}", Explanations).answers

    def slowest(self, count: int) -> Listing:
        """The slowest answers first."""
        return self.read(f"/requests?slowest={count}", Listing)

    def raw(self, rid: str, count: int) -> str:
        """What the server says of a request, or of the slowest where none is named."""
        path = f"/requests/{quote(rid)}" if rid else f"/requests?slowest={count}"
        return self.ask("GET", path).decode()


@dataclass(frozen=True)
class Asked:
    """A request that was sent from here, by this machine's clocks.

    Args:
        rid: of the answer.
        sent_at_s: since 1970, before the connection was made.
        took_ms: until the last byte of the answer.
    """

    rid: str
    sent_at_s: float
    took_ms: float


def send(url: str, api_key: str, path: str, body: Mapping[str, Any]) -> Asked:
    """Sends a request over a connection of its own, as a client does that has none yet.

    Raises:
        SglError: the server cannot be reached, refuses, or its answer has no id.
    """
    with Connection(url, api_key) as connection:
        sent_at_s, begin_s = time.time(), time.monotonic()
        answer = connection.ask("POST", path, body)
        took_ms = 1e3 * (time.monotonic() - begin_s)
    return Asked(_rid_of(answer), sent_at_s, took_ms)


def as_observed(found: Explanation, asked: Asked) -> Explanation:
    """With what the server does not see, the network and the client itself, as a part: then all of it is what a client
    has waited. Where it lies before the request came and where behind it is told by both clocks, if these agree."""
    network_ms = max(asked.took_ms - found.total_ms, 0.0)
    before_ms = min(max(1e3 * (found.received - asked.sent_at_s), 0.0), network_ms)
    there = [structs.replace(piece, begin_ms=piece.begin_ms + before_ms) for piece in found.pieces]
    behind_ms = before_ms + found.total_ms
    ways = [(0.0, before_ms), (behind_ms, network_ms - before_ms)]
    around = [Piece(part="network", begin_ms=begin_ms, ms=ms) for begin_ms, ms in ways if ms]
    alone = structs.replace(
        found.alone,
        total_ms=found.alone.total_ms + network_ms,
        parts={**found.alone.parts, "network": network_ms},
    )
    first_ms = found.first_token_ms
    return structs.replace(
        found,
        total_ms=found.total_ms + network_ms,
        first_token_ms=None if first_ms is None else first_ms + before_ms,
        parts={**found.parts, "network": network_ms},
        pieces=sorted([*around, *there], key=lambda piece: piece.begin_ms),
        alone=alone,
    )


def _rid_of(answer: bytes) -> str:
    """What the answer is called: of any of the APIs, the first of several, whole or a stream's first event."""
    lines = [line.removeprefix(b"data:").strip() for line in answer.splitlines() if line.startswith(b"data:")]
    try:
        found = json.decode(lines[0] if lines else answer)
        found = found[0] if isinstance(found, list) else found
        found = found.get("response", found.get("message", found))
        rid = found.get("meta_info", found)["id"]
    except (MsgspecError, AttributeError, LookupError, TypeError):
        raise SglError(
            "The answer has no id to be explained by; is this a request to generate?", param="--send"
        ) from None
    return str(rid)
