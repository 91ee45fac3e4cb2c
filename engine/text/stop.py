"""Finds stop strings in text that arrives in pieces; the outcome does not depend on how the text is cut.

The match that begins first wins, the longest of those that begin together. Text that may still turn out to belong to a
match is held back, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Watches one answer.

    Args:
        stops: strings that end it, none of them empty.
        keep: whether the matched string stays in the text.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        assert all(stops)
        self._stops = stops
        self._keep = keep
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Takes in text; returns what is certain to be part of the answer. Nothing after a match."""
        if self.matched is not None:
            return ""
        held = self._held + text
        start, stop = self._first(held)
        open_at = len(held) - max((_open_len(held, stop) for stop in self._stops), default=0)
        if stop and start < open_at:
            return self._end(held, start, stop)
        cut = min(start, open_at)
        self._held = held[cut:]
        return held[:cut]

    def finish(self) -> str:
        """The text held back, now that no more will come; decides a match that waited for a longer one."""
        held, self._held = self._held, ""
        start, stop = self._first(held)
        return self._end(held, start, stop) if stop else held

    def _first(self, text: str) -> tuple[int, str]:
        """Where the winning match begins and which string it is; the text's end and nothing if there is none."""
        found = ((text.find(stop), -len(stop), stop) for stop in self._stops)
        start, _, stop = min((match for match in found if match[0] >= 0), default=(len(text), 0, ""))
        return start, stop

    def _end(self, text: str, start: int, stop: str) -> str:
        self._held, self.matched = "", stop
        return text[: start + len(stop)] if self._keep else text[:start]


def _open_len(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the string may begin, not being complete."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
