"""Radix tree over pages of tokens: which prefixes have their KV cached, who uses them, which to evict first.

It owns the pages that it holds and gives them back through `evict` and `reset`; it never allocates. Automatic prefix
caching by a radix tree with LRU eviction follows SGLang (Zheng et al. 2024, "SGLang: Efficient Execution of Structured
Language Model Programs", section 3), at page granularity.

Keys are bytes, four per token, so that runs are compared by memcmp. A node holds a run of one or more pages.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Sequence

Namespace = tuple[str, str]
"""(adapter, cache_salt): requests share prefixes only within one namespace."""

TOKEN_BYTES = 4


def token_key(token_ids: Sequence[int]) -> bytes:
    """The tokens as the tree's key: int32, native byte order."""
    return struct.pack(f"{len(token_ids)}i", *token_ids)  # twice as fast as array("i", token_ids).tobytes()


class RadixNode:
    """A run of cached pages below ``parent``. ``refs`` counts the locks on it or below it; 0 means evictable.

    A node without a parent is the empty prefix of its ``namespace`` (or was evicted).
    """

    __slots__ = ("children", "in_heap", "key", "last_used", "namespace", "pages", "parent", "refs")

    def __init__(self, parent: RadixNode | None, key: bytes, pages: list[int], last_used: int) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, RadixNode] = {}
        self.refs = 0
        self.last_used = last_used
        self.namespace: Namespace | None = None
        self.in_heap = False


class RadixTree:
    """Prefix tree of KV pages with path locks and LRU eviction of unlocked leaves.

    A lock on a node pins the whole path from its root. So every unlocked node has only unlocked nodes below it, and
    all unlocked pages can be evicted, leaf by leaf.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._page_bytes = page_size * TOKEN_BYTES
        self._clock = 0
        self._heap: list[tuple[int, int, RadixNode]] = []
        self._pushes = 0
        self._roots: dict[Namespace, RadixNode] = {}
        self.num_pages = 0
        self.num_evictable = 0
        self.version = 0

    def root(self, namespace: Namespace) -> RadixNode:
        """The empty prefix of a namespace."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = RadixNode(None, b"", [], 0)
            root.namespace = namespace
        return root

    def match_length(self, namespace: Namespace, key: bytes) -> int:
        """Number of leading pages of ``key`` that are cached; changes nothing."""
        node = self._roots.get(namespace)
        offset = 0
        while node is not None:
            node = node.children.get(key[offset : offset + self._page_bytes])
            if node is None:
                break
            common = self._common_pages(node.key, key, offset)
            offset += common * self._page_bytes
            if common < len(node.pages):
                break
        return offset // self._page_bytes

    def match(self, node: RadixNode, key: bytes) -> tuple[RadixNode, list[int]]:
        """Walks down from ``node`` along ``key`` and marks what it passes as used.

        Returns:
            The deepest node that is a prefix of ``key`` (a node is split where the match ends inside it) and the
            pages between it and the start.
        """
        self._clock += 1
        node.last_used = self._clock
        pages: list[int] = []
        offset = 0
        while len(key) - offset >= self._page_bytes:
            child = node.children.get(key[offset : offset + self._page_bytes])
            if child is None:
                break
            common = self._common_pages(child.key, key, offset)
            if common < len(child.pages):
                child = self._split(child, common)
            child.last_used = self._clock
            pages += child.pages
            offset += common * self._page_bytes
            node = child
        return node, pages

    def has_child(self, node: RadixNode, key: bytes) -> bool:
        """Whether the first page of ``key`` is cached behind ``node``."""
        return key[: self._page_bytes] in node.children

    def extend(self, node: RadixNode, key: bytes, pages: list[int]) -> tuple[RadixNode, list[int]]:
        """Takes ownership of ``pages`` as the continuation ``key`` of the locked (or root) ``node``.

        Returns:
            The node at the end of the path, and the pages now cached for ``key``. Where these differ from ``pages``
            the tree already had that part and the caller still owns its own copy.
        """
        assert len(key) == len(pages) * self._page_bytes
        end, cached = self.match(node, key)
        fresh = pages[len(cached) :]
        if not fresh:
            return end, cached
        rest = key[len(cached) * self._page_bytes :]
        self.num_pages += len(fresh)
        self.version += 1
        if end is node and end.refs == 1 and not end.children and end.parent is not None:
            # The caller's own lock is the only one: growing the run keeps a chunked prompt in one node.
            end.key += rest
            end.pages = end.pages + fresh
            return end, cached + fresh
        leaf = RadixNode(end, rest, fresh, self._clock)
        end.children[rest[: self._page_bytes]] = leaf
        self.num_evictable += len(fresh)
        self._offer(leaf)
        return leaf, cached + fresh

    def lock(self, node: RadixNode) -> None:
        """Pins the path from the root to ``node``."""
        walk: RadixNode | None = node
        while walk is not None:
            if walk.refs == 0:
                self.num_evictable -= len(walk.pages)
            walk.refs += 1
            walk = walk.parent

    def unlock(self, node: RadixNode) -> None:
        """Takes one `lock` back."""
        walk: RadixNode | None = node
        while walk is not None:
            assert walk.refs > 0, "unlock without lock"
            walk.refs -= 1
            if walk.refs == 0:
                self.num_evictable += len(walk.pages)
                self._offer(walk)
                self._drop_if_empty(walk)
            walk = walk.parent

    def evict(self, count: int) -> list[int]:
        """Gives up at least ``count`` unlocked pages where there are so many, least recently used leaves first."""
        evicted: list[int] = []
        heap = self._heap
        while len(evicted) < count and heap:
            last_used, _, leaf = heap[0]
            is_leaf = not (leaf.refs or leaf.children or leaf.parent is None)
            if is_leaf and leaf.last_used != last_used:  # used since: it goes further back
                self._pushes += 1
                heapq.heapreplace(heap, (leaf.last_used, self._pushes, leaf))
                continue
            heapq.heappop(heap)
            leaf.in_heap = False
            if is_leaf:
                evicted += self._trim(leaf, count - len(evicted))
        if evicted:
            self.version += 1
        return evicted

    def reset(self) -> list[int]:
        """Forgets everything and returns all pages; no path may be locked."""
        pages = [page for node in self.nodes() for page in node.pages]
        assert self.num_evictable == len(pages) == self.num_pages, "reset while a prefix is in use"
        self._roots.clear()
        self._heap.clear()
        self.num_pages = self.num_evictable = 0
        self.version += 1
        return pages

    def nodes(self) -> Iterator[RadixNode]:
        """All nodes in depth-first order; for inspection and checks."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _common_pages(self, run: bytes, key: bytes, offset: int) -> int:
        """Length in pages of the common prefix of ``run`` and ``key[offset:]``."""
        limit = min(len(run), len(key) - offset) // self._page_bytes
        size = limit * self._page_bytes
        if run[:size] == key[offset : offset + size]:
            return limit
        low = 0
        while limit - low > 1:
            middle = (low + limit) // 2
            begin, end = low * self._page_bytes, middle * self._page_bytes
            if run[begin:end] == key[offset + begin : offset + end]:
                low = middle
            else:
                limit = middle
        return low

    def _split(self, node: RadixNode, num_pages: int) -> RadixNode:
        """Cuts ``node`` after ``num_pages``; the new upper part is returned, ``node`` stays the end of its path."""
        parent = node.parent
        assert parent is not None and 0 < num_pages < len(node.pages)
        cut = num_pages * self._page_bytes
        upper = RadixNode(parent, node.key[:cut], node.pages[:num_pages], node.last_used)
        upper.refs = node.refs
        parent.children[upper.key[: self._page_bytes]] = upper
        node.key, node.pages, node.parent = node.key[cut:], node.pages[num_pages:], upper
        upper.children[node.key[: self._page_bytes]] = node
        return upper

    def _trim(self, leaf: RadixNode, count: int) -> list[int]:
        """Removes up to ``count`` pages from the end of an unlocked leaf, and the leaf itself when none is left."""
        keep = max(len(leaf.pages) - count, 0)
        removed = leaf.pages[keep:]
        self.num_pages -= len(removed)
        self.num_evictable -= len(removed)
        if keep:
            leaf.pages = leaf.pages[:keep]
            leaf.key = leaf.key[: keep * self._page_bytes]
            self._offer(leaf)
            return removed
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key[: self._page_bytes]]
        leaf.parent = None
        self._offer(parent)
        self._drop_if_empty(parent)
        return removed

    def _drop_if_empty(self, node: RadixNode) -> None:
        """Forgets an unused namespace: salts come from clients, so the table of roots must not grow for ever."""
        if node.namespace is not None and node.refs == 0 and not node.children:
            self._roots.pop(node.namespace, None)

    def _offer(self, node: RadixNode) -> None:
        """Puts an evictable leaf into the heap once; entries gone stale are sorted out when they are popped."""
        if node.in_heap or node.refs or node.children or node.parent is None:
            return
        node.in_heap = True
        self._pushes += 1
        heapq.heappush(self._heap, (node.last_used, self._pushes, node))
