"""The one owner of page accounting: allocation with eviction, prefix lookup, and the single path that frees a page.

A page is free, in the tree (cached), or private to one request; `check` asserts that law.
"""

from __future__ import annotations

from collections.abc import Iterable

from sgl.engine.core.pages import PageAllocator
from sgl.engine.core.radix import Namespace, RadixNode, RadixTree


class PageCache:
    """KV pages of one engine. With ``prefix_caching`` off nothing is ever shared or kept."""

    def __init__(self, num_pages: int, page_size: int, *, prefix_caching: bool = True) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self.prefix_caching = prefix_caching
        self._allocator = PageAllocator(num_pages)
        self._tree = RadixTree(page_size)

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out: free ones and those cached for nobody in particular."""
        return self._allocator.num_free + self._tree.num_evictable

    @property
    def num_cached(self) -> int:
        return self._tree.num_pages

    @property
    def num_free(self) -> int:
        return self._allocator.num_free

    @property
    def version(self) -> int:
        """Changes whenever the answer of `match_length` may change."""
        return self._tree.version

    def match_length(self, namespace: Namespace, key: bytes) -> int:
        """Leading pages of ``key`` that are cached, without touching them."""
        return self._tree.match_length(namespace, key)

    def acquire(self, namespace: Namespace, key: bytes) -> tuple[RadixNode, list[int]]:
        """Locks the longest cached prefix of ``key``; returns its node and pages."""
        node, pages = self._tree.match(self._tree.root(namespace), key)
        self._tree.lock(node)
        return node, pages

    def advance(self, node: RadixNode, key: bytes) -> tuple[RadixNode, list[int]]:
        """Moves a lock down along ``key`` as far as the tree goes; returns the new node and the pages gained."""
        end, pages = self._tree.match(node, key)
        return self._relock(node, end), pages

    def publish(self, node: RadixNode, key: bytes, pages: list[int], *, replace: bool) -> tuple[RadixNode, int]:
        """Hands ``pages``, the KV of ``key`` behind the locked ``node``, to the tree.

        Pages of which the tree has a copy are freed, so the caller must stop using them; without ``replace`` such a
        run is left alone instead.

        Returns:
            The node at the end, locked in place of ``node``, and how many of ``pages`` the tree took: all or none.
        """
        if not self.prefix_caching or not pages or (not replace and self._tree.has_child(node, key)):
            return node, 0
        end, cached = self._tree.extend(node, key, pages)
        end = self._relock(node, end)
        self.free([own for own, kept in zip(pages, cached, strict=True) if own != kept])
        return end, len(pages)

    def release(self, node: RadixNode) -> None:
        """Unlocks a prefix; its pages stay cached until they are needed."""
        self._tree.unlock(node)

    def take(self, count: int) -> list[int] | None:
        """``count`` pages, evicting cached ones as needed; None (and no change) when there are not so many."""
        missing = count - self._allocator.num_free
        if missing > 0:
            if missing > self._tree.num_evictable:
                return None
            self.free(self._tree.evict(missing))
        return self._allocator.take(count)

    def free(self, pages: list[int]) -> None:
        """The only way back to the free list."""
        self._allocator.free(pages)

    def flush(self) -> None:
        """Drops every cached prefix; no request may hold one."""
        self.free(self._tree.reset())

    def check(self, private: Iterable[int]) -> None:
        """Asserts that every page has exactly one owner: free, cached or private."""
        owners = self._allocator.free_pages() + list(private)
        evictable = 0
        for node in self._tree.nodes():
            owners += node.pages
            evictable += len(node.pages) if node.refs == 0 else 0
        assert sorted(owners) == list(range(self.num_pages)), "a page is lost or has two owners"
        assert evictable == self._tree.num_evictable, "evictable count drifted"

    def _relock(self, node: RadixNode, end: RadixNode) -> RadixNode:
        if end is not node:
            self._tree.lock(end)
            self._tree.unlock(node)
        return end
