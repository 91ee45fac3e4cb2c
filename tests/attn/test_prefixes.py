"""Which rows are computed together, against all rows that could be."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from sgl.engine.attn.prefixes import Tables


def common(tables: list[list[int]]) -> int:
    pairs = zip(*tables, strict=False)
    return next((n for n, column in enumerate(pairs) if len(set(column)) > 1), min(map(len, tables)))


def random_tables(rng: random.Random) -> list[list[int]]:
    """Of a few rows that branch off each other here and there; numbers are pages that never come twice."""
    fresh = iter(range(10_000))
    tables: list[list[int]] = []
    for _ in range(rng.randint(1, 6)):
        start = rng.choice(tables) if tables and rng.random() < 0.8 else []
        tables.append([*start[: rng.randint(0, 8)], *(next(fresh) for _ in range(rng.randint(0, 5)))])
    return tables


@pytest.mark.parametrize("seed", range(60))
def test_spares_no_less_than_the_best_prefix_alone(seed: int) -> None:
    rng = random.Random(seed)
    tables = random_tables(rng)
    slots = np.array(rng.sample(range(9), len(tables)))
    pages = np.full((9, 16), 77, np.int32)
    for slot, table in zip(slots, tables, strict=True):
        pages[slot, : len(table)] = table
    found = Tables(pages, slots, np.array([len(table) for table in tables])).prefixes()
    rows = [row for prefix in found for row in prefix.rows]
    assert len(rows) == len(set(rows))
    for prefix in found:
        assert len(prefix.rows) > 1 and 0 < prefix.num_pages <= common([tables[row] for row in prefix.rows])
    chosen = [part for count in range(2, len(tables) + 1) for part in combinations(tables, count)]
    best = max(((len(part) - 1) * common(list(part)) for part in chosen), default=0)
    assert sum(prefix.num_spared for prefix in found) >= best


def test_what_branches_off_late_is_apart_from_what_branches_off_early() -> None:
    tables = [[1, 2, 3, 4], [1, 9, 9, 9], [1, 2, 3, 5], [1, 8, 8, 8], [7, 7, 7, 7]]
    found = Tables(np.array(tables, np.int32), np.arange(5), np.full(5, 4)).prefixes()
    assert sorted((sorted(prefix.rows.tolist()), prefix.num_pages) for prefix in found) == [([0, 2], 3), ([1, 3], 1)]


@pytest.mark.parametrize("worth", [1, 5000])
def test_rows_that_branch_off_one_after_the_other(worth: int) -> None:
    """Ever longer prefixes of one document: as many branches as rows."""
    count = 600
    pages = np.arange(count * (count + 1), dtype=np.int32).reshape(count, count + 1) + 10_000
    for row in range(count):
        pages[row, : row + 1] = range(row + 1)
    found = Tables(pages, np.arange(count), np.arange(count) + 2).prefixes(worth)
    rows = [row for prefix in found for row in prefix.rows]
    assert len(rows) == len(set(rows)) and found
    assert all(1 <= prefix.num_pages <= prefix.rows.min() + 1 for prefix in found)


def test_what_is_not_worth_it_is_not_told_apart() -> None:
    pages = np.arange(4 * 9, dtype=np.int32).reshape(4, 9) + 100
    pages[:, :2] = [1, 2]
    pages[2:, :5] = [1, 2, 3, 4, 5]
    tables = Tables(pages, np.arange(4), np.full(4, 9))
    for worth, expected in ((21, [([0, 1], 2), ([2, 3], 5)]), (22, [([0, 1, 2, 3], 2)])):
        found = tables.prefixes(worth)
        assert sorted((sorted(prefix.rows.tolist()), prefix.num_pages) for prefix in found) == expected
