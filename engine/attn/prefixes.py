"""Which rows of a step begin with the same pages, and with how many; knows page tables on the host, and no device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    def prefixes(self, rows: np.ndarray, column: int = 0) -> list[Prefix]:
        """Of rows that agree before a column: those that spare most reading, no row in two of them."""
        rows = rows[self.num_pages[rows] > column]
        found = self.pages[self.slots[rows], column]
        order = np.argsort(found, kind="stable")
        borders = np.flatnonzero(np.diff(found[order])) + 1
        return [
            prefix
            for alike in np.split(rows[order], borders)
            if len(alike) > 1
            for prefix in self._together_or_apart(alike)
        ]

    def _together_or_apart(self, rows: np.ndarray) -> list[Prefix]:
        """Some rows that begin alike: together as far as all agree, but for parts that agree so much further that they
        spare more by themselves."""
        width = int(self.num_pages[rows].min())
        tables = self.pages[self.slots[rows], :width]
        differs = (tables != tables[0]).any(0)
        common = int(differs.argmax()) if differs.any() else width
        parts = self.prefixes(rows, common)
        kept = [part for part in parts if part.num_spared > len(part.rows) * common]
        rest = rows[~np.isin(rows, [row for part in kept for row in part.rows])]
        if len(rest) > 1:
            kept.append(Prefix(rest, common))
        return max(kept, parts, key=lambda found: sum(prefix.num_spared for prefix in found))
