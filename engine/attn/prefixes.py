"""Which rows of a step begin with the same pages, and with how many; knows page tables on the host, and no device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MOST_BRANCHES = 8
"""How many times rows may branch off each other until those that are left are not told apart: a system prompt, its
tools, a conversation and its samples are four."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Rows that have their first pages in common."""

    rows: np.ndarray  # int64, two at least
    num_pages: int

    @property
    def num_spared(self) -> int:
        """Pages that need not be read again."""
        return (len(self.rows) - 1) * self.num_pages


@dataclass(frozen=True, slots=True)
class Tables:
    """The page tables of some rows."""

    pages: np.ndarray  # int32 [num_slots, max_pages], of all slots
    slots: np.ndarray  # int64 [B]
    num_pages: np.ndarray  # int64 [B], how many pages of each row may be shared

    def prefixes(self, worth: int = 1) -> list[Prefix]:
        """Those that spare most reading, no row in two of them.

        Args:
            worth: how many pages are worth a closer look.
        """
        return self._alike(np.arange(len(self.slots)), 0, worth, _MOST_BRANCHES)

    def _alike(self, rows: np.ndarray, column: int, worth: int, most_branches: int) -> list[Prefix]:
        """Of rows that agree before a column."""
        rows = rows[self.num_pages[rows] > column]
        found = self.pages[self.slots[rows], column]
        order = np.argsort(found, kind="stable")
        borders = np.flatnonzero(np.diff(found[order])) + 1
        return [
            prefix
            for alike in np.split(rows[order], borders)
            if len(alike) > 1
            for prefix in self._together_or_apart(alike, column, worth, most_branches)
        ]

    def _together_or_apart(self, rows: np.ndarray, column: int, worth: int, most_branches: int) -> list[Prefix]:
        """Some rows that begin alike: together as far as all agree, but for parts that agree so much further that they
        spare more by themselves."""
        lengths = self.num_pages[rows]
        tables = self.pages[self.slots[rows], column : lengths.min()]
        differs = (tables != tables[0]).any(0)
        common = column + (int(differs.argmax()) if differs.any() else len(differs))
        if not most_branches or (len(rows) - 1) * (lengths.max() - common) < worth:
            return [Prefix(rows, common)]
        parts = self._alike(rows, common, worth, most_branches - 1)
        kept = [part for part in parts if part.num_spared > len(part.rows) * common]
        rest = rows[~np.isin(rows, [row for part in kept for row in part.rows])]
        if len(rest) > 1:
            kept.append(Prefix(rest, common))
        return max(kept, parts, key=lambda found: sum(prefix.num_spared for prefix in found))
