from __future__ import annotations

import random

import pytest

from sgl.engine.core.cache import PageCache
from sgl.engine.core.radix import RadixNode, RadixTree, token_key

NAMESPACE = ("", "")


class NaiveCache:
    """The definition of a prefix cache: the set of page-aligned prefixes, each with the page of its last tokens."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.prefixes: dict[tuple[int, ...], int] = {}

    def match(self, tokens: list[int]) -> list[int]:
        pages = []
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            page = self.prefixes.get(tuple(tokens[:end]))
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, tokens: list[int], pages: list[int]) -> None:
        for index, page in enumerate(pages):
            self.prefixes.setdefault(tuple(tokens[: (index + 1) * self.page_size]), page)


def random_prompt(rng: random.Random, page_size: int) -> list[int]:
    return [rng.randrange(2) for _ in range(page_size * rng.randint(1, 6))]


@pytest.mark.parametrize("seed", range(30))
def test_tree_matches_the_naive_set_of_prefixes(seed: int) -> None:
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 3])
    tree, naive = RadixTree(page_size), NaiveCache(page_size)
    locked: list[RadixNode] = []
    next_page = 0
    for _ in range(200):
        tokens = random_prompt(rng, page_size)
        key = token_key(tokens)
        assert tree.match_length(NAMESPACE, key) == len(naive.match(tokens))
        root = tree.root(NAMESPACE)
        if rng.random() < 0.5:
            node, pages = tree.match(root, key)
            assert pages == naive.match(tokens)
            tree.lock(node)
            locked.append(node)
        else:
            fresh = list(range(next_page, next_page + len(tokens) // page_size))
            next_page += len(fresh)
            node, pages = tree.extend(root, key, fresh)
            naive.insert(tokens, fresh)
            assert pages == naive.match(tokens)
        if locked and rng.random() < 0.4:
            tree.unlock(locked.pop(rng.randrange(len(locked))))
        assert tree.num_pages == len(naive.prefixes)
        assert tree.num_evictable == sum(len(n.pages) for n in tree.nodes() if n.refs == 0)
    while locked:
        tree.unlock(locked.pop())
    assert sorted(tree.reset()) == sorted(naive.prefixes.values())


@pytest.mark.parametrize("seed", range(20))
def test_eviction_spares_locked_paths_and_keeps_the_tree_consistent(seed: int) -> None:
    rng = random.Random(seed)
    cache = PageCache(24, 2)
    held: list[tuple[RadixNode, list[int], list[int]]] = []
    for _ in range(300):
        tokens = random_prompt(rng, 2)
        key = token_key(tokens)
        node, shared = cache.acquire(NAMESPACE, key)
        fresh = cache.take(len(tokens) // 2 - len(shared))
        if fresh is None:
            cache.release(node)
        else:
            node, taken = cache.publish(node, key[len(shared) * 8 :], fresh, replace=False)
            assert taken == len(fresh)
            held.append((node, tokens, shared + fresh))
        for node, tokens, pages in held:
            assert cache.acquire(NAMESPACE, token_key(tokens))[1] == pages, "a locked prefix was evicted"
            cache.release(node)
        while held and (fresh is None or rng.random() < 0.3):
            cache.release(held.pop(rng.randrange(len(held)))[0])
            fresh = []
        cache.check([])


def test_least_recently_used_leaf_goes_first() -> None:
    cache = PageCache(3, 1)
    for token in (1, 2, 3):
        node, _ = cache.acquire(NAMESPACE, token_key([token]))
        node, _ = cache.publish(node, token_key([token]), cache.take(1) or [], replace=True)
        cache.release(node)
    cache.release(cache.acquire(NAMESPACE, token_key([1]))[0])
    assert cache.take(1) is not None
    assert [cache.match_length(NAMESPACE, token_key([token])) for token in (1, 2, 3)] == [1, 0, 1]


def test_eviction_trims_the_tail_of_a_run_before_its_head() -> None:
    cache = PageCache(4, 1)
    node, _ = cache.acquire(NAMESPACE, token_key([1, 2, 3, 4]))
    node, _ = cache.publish(node, token_key([1, 2, 3, 4]), cache.take(4) or [], replace=True)
    assert cache.take(1) is None, "a locked run must not be evicted"
    cache.release(node)
    assert cache.take(3) is not None
    assert cache.match_length(NAMESPACE, token_key([1, 2, 3, 4])) == 1


def test_namespaces_share_nothing_and_empty_ones_are_forgotten() -> None:
    tree = RadixTree(1)
    salted = ("", "salt")
    leaf, _ = tree.extend(tree.root(salted), token_key([1, 2]), [0, 1])
    assert tree.match_length(salted, token_key([1, 2])) == 2
    assert tree.match_length(NAMESPACE, token_key([1, 2])) == 0
    root = tree.root(("", "never stored"))
    tree.lock(root)
    tree.unlock(root)
    assert tree.evict(2) == [0, 1]
    assert [node.namespace for node in tree.nodes()] == []
    assert leaf.parent is None
