"""What requests hold: a slot, pages of their own, and a lock on the prefix that they share; decides nothing.

A page belongs to the prefix cache up to a request's ``num_shared``, and to the request alone behind that.
"""

from __future__ import annotations

from collections.abc import Iterable

from sgl.engine.core.cache import PageCache
from sgl.engine.core.request import RequestState


class Holdings:
    """Slots and pages of one engine; pages come with `reset`.

    Attributes:
        cache: the prefix cache, and all accounting of pages.
        freed_slots: those given up since the last plan, which the next one tells the device.
    """

    cache: PageCache

    def __init__(self, num_slots: int) -> None:
        self.freed_slots: list[int] = []
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))

    def reset(self, num_pages: int, page_size: int, *, prefix_caching: bool) -> None:
        """Goes on with other pages and an empty prefix cache; no request may hold anything."""
        assert len(self._free_slots) == self._num_slots
        self.cache = PageCache(num_pages, page_size, prefix_caching=prefix_caching)

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free_slots)

    def take_slot(self) -> int:
        return self._free_slots.pop()

    def share(self, state: RequestState) -> None:
        """Locks what is cached of a waiting request's tokens, which counts as computed then."""
        page_size = self.cache.page_size
        state.sync_key()
        key = state.key_of(0, state.match_limit() // page_size, page_size)
        state.node, state.pages = self.cache.acquire(state.namespace, key)
        state.num_shared = len(state.pages)
        state.computed = state.num_shared * page_size

    def unshare(self, state: RequestState) -> None:
        """Undoes `share`, for a request that does not run after all."""
        assert state.node is not None
        self.cache.release(state.node)
        state.node, state.pages, state.num_shared, state.computed = None, [], 0, 0

    def extend(self, state: RequestState, num_tokens: int) -> bool:
        """Gets the pages for ``num_tokens`` more; False (and no change) if there are not so many."""
        missing = -(-(state.computed + num_tokens) // self.cache.page_size) - len(state.pages)
        if missing <= 0:
            return True
        pages = self.cache.take(missing)
        if pages is None:
            return False
        state.pages += pages
        return True

    def adopt(self, state: RequestState) -> None:
        """Takes over what others have cached of this prompt since the last chunk."""
        assert state.node is not None
        page_size = self.cache.page_size
        key = state.key_of(state.num_shared, state.match_limit() // page_size, page_size)
        state.node, gained = self.cache.advance(state.node, key)
        if not gained:
            return
        end = state.num_shared + len(gained)
        self.cache.free(state.pages[state.num_shared : end])
        state.pages[state.num_shared : end] = gained
        state.pages_sent = min(state.pages_sent, state.num_shared)
        state.num_shared = end
        if end * page_size > state.computed:
            state.computed = end * page_size
            state.computed_dirty = True

    def publish(self, state: RequestState, num_tokens: int, *, replace: bool) -> None:
        """Hands the whole pages of the first ``num_tokens`` to the prefix cache.

        Without ``replace`` nothing happens where the cache has a copy already: the step being planned still writes
        to our own pages, which must not be freed (the next `adopt` changes over).
        """
        page_size = self.cache.page_size
        num_pages = num_tokens // page_size
        if num_pages <= state.num_shared:
            return
        assert state.node is not None
        key = state.key_of(state.num_shared, num_pages, page_size)
        state.node, taken = self.cache.publish(
            state.node, key, state.pages[state.num_shared : num_pages], replace=replace
        )
        state.num_shared += taken

    def surrender(self, state: RequestState, *, keep: bool) -> None:
        """Gives up slot and pages; what was computed for certain stays cached if ``keep``."""
        assert state.node is not None
        if keep:
            state.sync_key()
            self.publish(state, min(state.computed, len(state.tokens) - 1), replace=True)
        self.cache.free(state.pages[state.num_shared :])
        self.cache.release(state.node)
        self._free_slots.append(state.slot)
        self.freed_slots.append(state.slot)
        state.node, state.pages, state.num_shared, state.slot = None, [], 0, -1

    def check(self, holders: Iterable[RequestState]) -> None:
        """Asserts that every page and every slot has one owner, ``holders`` being all who have any."""
        states = list(holders)
        self.cache.check(page for state in states for page in state.pages[state.num_shared :])
        slots = self._free_slots + [state.slot for state in states]
        assert sorted(slots) == list(range(self._num_slots)), "a slot is lost or has two owners"
