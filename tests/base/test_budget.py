"""The memory budget against sums done by hand."""

from __future__ import annotations

import dataclasses

import pytest

from sgl.engine.base.budget import Budget, size, solve
from sgl.engine.base.config import EngineConfig, Machine
from sgl.engine.base.errors import ConfigError
from tests.base.machines import GIB, GPU, LAPTOP, resolved

MIB = 2**20


def solved(config: EngineConfig, machine: Machine = LAPTOP, *, weights: int = GIB, page: int = MIB) -> Budget:
    return solve(config, machine, weight_bytes=weights, kv_bytes_per_page=page, activation_bytes=256 * MIB)


def test_a_laptop_gives_half_of_its_free_memory() -> None:
    budget = solved(resolved())  # 8 GiB free: 4 GiB - 1 GiB - 256 MiB = 2816 pages of 1 MiB
    assert (budget.num_pages, budget.max_total_tokens, budget.max_running_requests) == (2816, 2816 * 16, 64)
    assert [(line.name, line.size_bytes) for line in budget.lines] == [
        ("free memory", 8 * GIB), ("usable", 4 * GIB), ("weights", -GIB), ("activations", -256 * MIB),
        ("KV cache", -2816 * MIB), ("left", 0),
    ]  # fmt: skip


def test_a_small_model_takes_no_more_than_its_requests_can_use() -> None:
    config = resolved(model__context_length=1000, schedule__max_running_requests=3)
    budget = solved(config, page=1024)
    assert budget.num_pages == 3 * 63  # 63 pages of 16 tokens hold 1000
    assert "never need more" in budget.reasons["cache.max_total_tokens"]


def test_a_gpu_gives_a_share_of_all_its_memory() -> None:
    machine = dataclasses.replace(GPU, memory_bytes=100 * GIB, memory_free_bytes=99 * GIB)
    budget = solved(resolved(machine, cache__mem_fraction_static=0.5), machine, weights=40 * GIB)
    assert budget.num_pages == 10 * 1024 - 256
    shared = dataclasses.replace(machine, memory_free_bytes=45 * GIB)
    assert (
        solved(resolved(shared, cache__mem_fraction_static=0.5), shared, weights=40 * GIB).num_pages == 5 * 1024 - 256
    )


def test_an_asked_number_of_tokens_is_kept_in_whole_pages() -> None:
    budget = solved(resolved(cache__max_total_tokens=100))
    assert (budget.num_pages, budget.max_total_tokens) == (6, 96)
    assert budget.reasons["cache.max_total_tokens"] == "100 rounded down to whole pages"
    assert solved(resolved(cache__max_total_tokens=96)).reasons.keys() == {"schedule.max_running_requests"}
    with pytest.raises(
        ConfigError, match=r"--max-total-tokens 15 is less than one page; use at least --page-size \(16"
    ):
        solved(resolved(cache__max_total_tokens=15))


def test_few_pages_mean_few_requests_unless_asked_otherwise() -> None:
    assert solved(resolved(cache__max_total_tokens=96)).max_running_requests == 6
    assert solved(resolved(cache__max_total_tokens=96, schedule__max_running_requests=9)).max_running_requests == 9


@pytest.mark.parametrize(
    ("weights", "left"),
    [(4 * GIB, "leave nothing"), (4 * GIB - 256 * MIB - 31 * MIB, "leave 31.0 MiB")],
)
def test_too_little_memory_names_the_budget_and_the_flags(weights: int, left: str) -> None:
    with pytest.raises(ConfigError) as caught:
        solved(resolved(), weights=weights)
    for part in (
        "free memory 8.0 GiB", "usable 4.0 GiB", f"weights {size(weights)}", "activations 256.0 MiB", left,
        "512 tokens need 32.0 MiB", "--mem-fraction-static",
    ):  # fmt: skip
        assert part in caught.value.message
    assert solved(resolved(), weights=4 * GIB - 256 * MIB - 32 * MIB).num_pages == 32


def test_a_short_context_needs_less() -> None:
    config = resolved(model__context_length=64)
    assert solved(config, weights=4 * GIB - 256 * MIB - 4 * MIB).num_pages == 4


def test_more_tokens_than_fit_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"1600000 tokens need 97\.7 GiB; lower --max-total-tokens or raise"
    ) as caught:
        solved(resolved(cache__max_total_tokens=1_600_000))
    assert caught.value.param == "--max-total-tokens"


def test_the_configuration_learns_what_was_settled_and_why() -> None:
    config = resolved()
    budget = solved(config)
    settled = budget.apply(config)
    assert settled.cache.max_total_tokens == budget.max_total_tokens
    assert settled.provenance["cache.max_total_tokens"].reason == "all that the memory allows"
    assert settled.schedule == config.schedule


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (-MIB, "-1.0 MiB"), (3 * GIB, "3.0 GiB"),
     (2**50, "1024.0 TiB")],
)  # fmt: skip
def test_sizes_read_well(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_on_a_gpu_what_is_really_left_decides() -> None:
    machine = dataclasses.replace(GPU, memory_bytes=80 * GIB, memory_free_bytes=79 * GIB)
    config = resolved(machine, cache__mem_fraction_static=0.5)
    budget = solve(
        config,
        machine,
        weight_bytes=10 * GIB,
        kv_bytes_per_page=MIB,
        activation_bytes=256 * MIB,
        graph_bytes=512 * MIB,
        workspace_bytes=256 * MIB,
        free_after_bytes=67 * GIB,  # 3 GiB of 80 went to others
    )
    assert budget.num_pages == (40 - 10 - 3 - 1) * 1024
    lines = {line.name: line.size_bytes for line in budget.lines}
    assert lines["others"] == -3 * GIB and lines["CUDA graphs"] == -512 * MIB and lines["left"] == 0
    assert lines["attention workspace"] == -256 * MIB
    assert lines["usable"] == 40 * GIB
