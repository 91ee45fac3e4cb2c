"""In which order waiting requests are admitted; a policy orders, it never admits."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

from sgl.engine.core.cache import PageCache
from sgl.engine.core.request import RequestState

Policy = Callable[[list[RequestState], PageCache], list[RequestState]]

MAX_MATCHED = 128
"""Longest queue for which prefixes are looked up; behind it the cost would exceed the gain (as in SGLang)."""


def fcfs(waiting: list[RequestState], cache: PageCache) -> list[RequestState]:
    """First come, first served."""
    return waiting


def lpm(waiting: list[RequestState], cache: PageCache) -> list[RequestState]:
    """Longest cached prefix first; among equals the earlier one."""
    if len(waiting) > MAX_MATCHED:
        return waiting
    _look_up(waiting, cache)
    return sorted(waiting, key=lambda state: (-state.request.priority, -state.match_pages))


def dfs_weight(waiting: list[RequestState], cache: PageCache) -> list[RequestState]:
    """Requests below the heaviest branch of the tree first, so that a branch is used up while it is cached.

    A branch is named by the first page of the prompt; its weight is the number of waiting requests below it
    (SGLang's dfs-weight orders by the same weights on every level of the tree).
    """
    if len(waiting) > MAX_MATCHED:
        return waiting
    _look_up(waiting, cache)
    weights: dict[tuple[object, bytes], int] = defaultdict(int)
    for state in waiting:
        weights[_branch(state, cache)] += 1
    return sorted(
        waiting,
        key=lambda state: (
            -state.request.priority,
            -weights[_branch(state, cache)],
            _branch(state, cache)[1],
            -state.match_pages,
        ),
    )


def shuffled(seed: int) -> Policy:
    """Random order within a priority; reproducible through ``seed``."""
    rng = random.Random(seed)

    def order(waiting: list[RequestState], cache: PageCache) -> list[RequestState]:
        return sorted(waiting, key=lambda state: (-state.request.priority, rng.random()))

    return order


def make_policy(name: str, seed: int) -> Policy:
    """The policy of that name: fcfs, lpm, dfs-weight or random."""
    return {"fcfs": fcfs, "lpm": lpm, "dfs-weight": dfs_weight, "random": shuffled(seed)}[name]


def _branch(state: RequestState, cache: PageCache) -> tuple[object, bytes]:
    return state.namespace, state.key_of(0, 1, cache.page_size)


def _look_up(waiting: list[RequestState], cache: PageCache) -> None:
    for state in waiting:
        if state.match_version != cache.version:
            state.match_version = cache.version
            state.match_pages = cache.match_length(state.namespace, state.key)
