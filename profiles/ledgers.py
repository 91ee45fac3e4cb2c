"""The ledgers of a running server's requests, over HTTP."""

from __future__ import annotations

from urllib.parse import quote

from sgl.engine.api.explanation import Explanation, Explanations, Listing
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
