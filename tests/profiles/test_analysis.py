"""What a profile says, against traces whose times are known and a naive count of every microsecond."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sgl.bench import limits
from sgl.bench.limits import Row
from sgl.engine.base.cost import AttentionCost, Cost, Product, Weights
from sgl.engine.base.errors import SglError
from sgl.profiles.advice import opportunities
from sgl.profiles.analysis import Analysis, Line, analyse, shared, union
from sgl.profiles.tables import difference, facts, tables
from sgl.profiles.trace import Event, Trace, read
from sgl.profiles.tree import Places, grow
from sgl.profiles.work import Ceilings, Step, Work, of_op, stages
from tests.profiles.traces import event, kernel, step, write

SLOW = Ceilings(bandwidth=1e9, rates={"bf16": 1e12})


def by_name(lines: list[Line]) -> dict[str, tuple[int, float]]:
    return {line.name: (line.count, line.total_us) for line in lines}


@pytest.fixture
def found(tmp_path: Path) -> Analysis:
    events = [*step(1000.0), *step(1150.0), event("span", "step", 1260.0, 5)]  # the last one had nothing to compute
    return analyse(read(write(tmp_path / "cpu.trace.json.gz", events, 2)), SLOW)


def test_the_parts_of_steps(found: Analysis) -> None:
    assert (found.device, found.num_steps, found.step_us, found.wall_us) == ("cpu", 2, 200, 250)
    assert by_name(found.phases) == {"schedule": (2, 20), "forward": (2, 120), "sample": (2, 40), "other": (2, 20)}
    assert found.coverage == 0.9
    assert by_name(found.layers) == {"layer 0": (2, 40), "layer 1": (2, 40)}
    assert by_name(found.kernels) == {
        "qkv": (4, 60),
        "attention": (4, 20),
        "logits": (2, 10),
        "aten::add": (2, 12),
        "aten::copy_": (2, 4),
        "aten::empty": (2, 2),
    }
    assert found.num_tokens == 8
    assert by_name(found.host)["sample"] == (2, 24)
    assert sum(line.total_us for line in [*found.kernels, *found.host]) == found.step_us


def test_kernels_are_held_against_the_machine(found: Analysis) -> None:
    qkv = next(line for line in found.kernels if line.name == "qkv")
    # two layers in two steps, each 3000 bytes of weights and 10 of activations for each of 4 tokens
    assert qkv.work == Work(4 * (3000 + 40), 4 * 2 * 1500 * 4, "bf16")
    assert qkv.bound == "memory"
    assert qkv.of_ceiling == pytest.approx(4 * 3040 / 1e9 / 60e-6)
    [attention] = [line for line in found.kernels if line.name == "attention"]
    assert attention.work is not None
    assert attention.work.flops == 4 * 8 * (7 + 8 + 9 + 10)  # what each of the four tokens sees


def test_stages_do_what_the_limit_says_a_step_does() -> None:
    """The yardstick of the benchmarks counts the same operations in another way."""
    linears = tuple(Weights(format="bf16", params=6 * size, size_bytes=12 * size) for size in (100,))
    products = tuple(
        Product(name=name, format="bf16", params=params, size_bytes=2 * params, activation_bytes_per_token=0)
        for name, params in (("qkv", 50), ("out", 20), ("up", 20), ("down", 10))
    )
    attention = (
        AttentionCost(num_layers=4, flops_per_pair=12, kv_bytes_per_token=8),
        AttentionCost(num_layers=2, flops_per_pair=12, kv_bytes_per_token=8, window=5),
    )
    head = Weights(format="bf16", params=77, size_bytes=154)
    cost = Cost(linears=linears, head=head, attention=attention, format="bf16", products=products)
    rows = [Row(3, 1), Row(0, 9), Row(40, 2)]
    whole = limits.step(cost, rows, 2)
    found = stages(cost, [Step(rows, 2)])
    assert sum(work.flops for work in found.values()) == sum(whole.operations.values())
    assert sum(work.size_bytes for work in found.values()) == whole.size_bytes


def test_opportunities_are_the_largest_first(found: Analysis) -> None:
    told = opportunities(found)
    assert 1 <= len(told) <= 3
    assert [one.saved for one in told] == sorted((one.saved for one in told), reverse=True)
    assert any("host code" in one.text.lower() and "46%" in one.text for one in told)


def test_tables_say_the_same(found: Analysis) -> None:
    made = {table.title: table for table in tables(found)}
    assert ("forward", "60.0", "60.0%") in made["Phases"].rows
    row = dict(zip(made["Kernels"].columns, next(r for r in made["Kernels"].rows if r[0] == "qkv"), strict=True))
    assert (row["calls"], row["us"], row["share"], row["bound by"]) == ("2.0", "30.0", "30.0%", "memory")
    assert "2 steps" in facts(found)
    steps, phases, *_ = difference(found, found)
    assert steps.rows == [("step", "100.0", "100.0", "+0.0", "+0.0%")]
    assert all(row[3] == "+0.0" for row in phases.rows)


def test_a_device_beside_the_thread(tmp_path: Path) -> None:
    """Two kernels of a layer, launched in it and running later; 30 of 100 us busy, of which 25 under host phases."""
    dims = {"Input Dims": [[4, 8], [8, 16]], "Input type": ["c10::BFloat16", "c10::BFloat16"]}
    events = [
        event("span", "step", 0.0, 100),
        event("span", "forward", 0.0, 40),
        event("span", "layer 3", 5.0, 20),
        event("op", "aten::mm", 6.0, 8, **dims),
        event("launch", "cudaLaunchKernel", 8.0, 2, correlation=11),
        event("launch", "cudaGraphLaunch", 30.0, 2, correlation=12),
        event("span", "result", 50.0, 10),
        kernel("gemm", 20.0, 10, 11),
        kernel("other", 45.0, 20, 12),
    ]
    found = analyse(read(write(tmp_path / "gpu.json", events)), SLOW)
    assert (found.device, by_name(found.kernels)) == ("gpu", {"other": (1, 20), "gemm": (1, 10)})
    assert by_name(found.layers) == {"layer 3": (1, 10)}
    assert (found.idle_us, found.hidden_us) == (70, 20)
    gemm = found.kernels[1]
    assert gemm.work == Work(2 * (4 * 8 + 8 * 16 + 4 * 16), 2 * 4 * 8 * 16, "bf16")
    assert any("idle for 70%" in one.text for one in opportunities(found))


@pytest.mark.parametrize(
    ("name", "dims", "work"),
    [
        ("aten::addmm", [[16], [4, 8], [8, 16]], Work(4 * (32 + 128 + 64), 2 * 4 * 8 * 16, "fp32")),
        ("aten::bmm", [[2, 4, 8], [2, 8, 16]], Work(4 * (64 + 256 + 128), 2 * 2 * 4 * 8 * 16, "fp32")),
        ("aten::mm", [[4, 8]], None),
        ("aten::add", [[4, 8], [4, 8]], None),
    ],
)
def test_products_with_shapes(name: str, dims: list[list[int]], work: Work | None) -> None:
    assert of_op(name, {"Input Dims": dims, "Input type": ["float", "float", "float"]}) == work


@pytest.mark.parametrize("seed", range(3))
def test_self_times_and_places_against_a_count_of_every_microsecond(seed: int) -> None:
    draw = random.Random(seed)
    events: list[Event] = []

    def fill(begin: int, end: int, depth: int) -> None:
        at = begin
        while depth < 4 and at < end - 1:
            first = draw.randrange(at, end)
            last = draw.randrange(first, end) + 1
            events.append(Event(f"{depth}:{first}", "span", "1", first, last - first))
            fill(first, last, depth + 1)
            at = last + draw.randrange(20)

    fill(0, 400, 0)
    innermost = [""] * 400
    for one in sorted(events, key=lambda one: int(one.name[0])):
        for us in range(int(one.begin_us), int(one.end_us)):
            innermost[us] = one.name + f":{int(one.end_us)}"
    draw.shuffle(events)
    roots = grow(events)
    nodes = [node for root in roots for node in root.walk()]
    assert len(nodes) == len(events)
    for node in nodes:
        assert node.self_us == innermost.count(f"{node.name}:{int(node.event.end_us)}")
    places = Places(roots)
    for us in range(400):
        node_at = places.at(us + 0.5)
        assert (f"{node_at.name}:{int(node_at.event.end_us)}" if node_at else "") == innermost[us]


def test_events_that_touch_are_not_within_each_other() -> None:
    """Far from zero a sum of floats may be a little more than the number after it."""
    begins = [3e13 + 10.1 * number for number in range(50)]
    events = [Event(f"{begin}", "native", "1", begin, 10.1 + 1e-9) for begin in begins]
    assert len(grow(events)) == 50


@pytest.mark.parametrize("seed", range(3))
def test_shared_time_against_a_count(seed: int) -> None:
    draw = random.Random(seed)
    a, b = (
        [(float(begin), float(begin + draw.randrange(30))) for begin in draw.sample(range(300), 12)] for _ in range(2)
    )
    count = sum(any(x <= us < y for x, y in a) and any(x <= us < y for x, y in b) for us in range(400))
    assert shared(union(a), union(b)) == count


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(SglError, match="has no steps"):
        analyse(Trace("x", [Event("aten::add", "op", "1", 0, 1)]))
    with pytest.raises(SglError, match="no whole step"):
        analyse(Trace("x", [Event("step", "span", "1", 0, 1)]))
