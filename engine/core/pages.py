"""Free list of KV pages: hands out page ids and takes them back; it does not know who holds them."""

from __future__ import annotations


class PageAllocator:
    """A stack of free page ids ``0 .. num_pages - 1``; the one freed last (warm in cache) goes out first."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Returns ``count`` page ids; the caller has made sure that so many are free."""
        assert count <= len(self._free), f"asked for {count} pages, {len(self._free)} are free"
        if count == 0:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        return pages

    def free(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))

    def free_pages(self) -> list[int]:
        """The free ids, for invariant checks."""
        return list(self._free)
