"""Finds stop strings in text that arrives in pieces; the outcome does not depend on how the text is cut.

The match that begins first wins, the longest of those that begin together. Text that may still turn out to belong to a
match is held back, and nothing else is. Every character is looked at once for each string, whatever they contain.
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
        self._firsts = frozenset(stop[0] for stop in stops)
        self._open = [_Prefix(stop) for stop in stops]  # those of which no match was found yet
        self._keep = keep
        self._held = ""
        self._found: tuple[int, int, str] | None = None  # begin in the held text, -length, string
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Takes in text; returns what is certain to be part of the answer. Nothing after a match."""
        if self.matched is not None:
            return ""
        if not self._held and self._firsts.isdisjoint(text):
            return text
        for prefix in [*self._open]:
            end = prefix.advance(text)
            if end:  # its next match would begin later
                self._open.remove(prefix)
                match = (len(self._held) + end - len(prefix.stop), -len(prefix.stop), prefix.stop)
                self._found = min(self._found or match, match)
        held = self._held + text
        open_at = len(held) - max((prefix.length for prefix in self._open), default=0)
        if self._found is None:
            self._held = held[open_at:]
            return held[:open_at]
        start, size, stop = self._found
        if start < open_at:
            return self._end(held, start, stop)
        self._held, self._found = held[open_at:], (start - open_at, size, stop)
        return held[:open_at]

    def finish(self) -> str:
        """The text held back, now that no more will come; decides a match that waited for a longer one."""
        held, self._held = self._held, ""
        if self._found is None or self.matched is not None:
            return held
        start, _, stop = self._found
        return self._end(held, start, stop)

    def _end(self, text: str, start: int, stop: str) -> str:
        self._held, self.matched = "", stop
        return text[: start + len(stop)] if self._keep else text[:start]


class _Prefix:
    """How much of one string the end of the text may be the beginning of (Knuth, Morris and Pratt 1977)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._borders: list[int] = []  # of each beginning, the longest part that is both its begin and its end

    def advance(self, text: str) -> int:
        """Takes in text; returns where in it the string is complete for the first time, 0 if it is not."""
        stop, length = self.stop, self.length
        if not length and stop[0] not in text:
            return 0
        self._borders = borders = self._borders or _borders(stop)
        for end, letter in enumerate(text, start=1):
            while length and stop[length] != letter:
                length = borders[length - 1]
            length += stop[length] == letter
            if length == len(stop):
                return end
        self.length = length
        return 0


def _borders(stop: str) -> list[int]:
    borders = [0]
    for letter in stop[1:]:
        length = borders[-1]
        while length and stop[length] != letter:
            length = borders[length - 1]
        borders.append(length + (stop[length] == letter))
    return borders
