from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgl.bench import machine
from sgl.bench.machine import Kernels, Sizes, measure
from sgl.cli import bench_machine
from sgl.kernels.cpu import native
from tests.cli.test_main import run

SMALL = Sizes(probe_bytes=1 << 16, matmul=16, gemv=(64, 32), gemm=(8, 64, 32), budget_s=0.001)
PEAKS = {"matmul_fp32", "matmul_bf16", "matmul_int8", "gemm_bf16", "gemm_int8"}
CACHED = PEAKS | {"native_call", "thread_team", "python_call", "torch_op"}
ALWAYS = {"read_bandwidth", "copy_bandwidth", "gemv_bf16", "gemv_bf16_read", "gemv_int8", "gemv_int8_read"}


@pytest.fixture(autouse=True)
def own_cache_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sgl.bench.machine._switches", lambda: 0)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


class Books:
    """Stands in for the engine's kernels and notes what was asked of them."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self.threads: list[int] = []

    def layer(self, weight: Tensor, *more: object) -> Sums:
        return Sums(self, *weight.shape)

    def kernels(self, build: str = "1", missing: str = "") -> Kernels:
        layers = {} if missing else {"bf16": self.layer, "int8": self.layer}
        return Kernels(build, layers, lambda: None, self.threads.append, missing)


class Sums:
    """A layer whose weights are all 1."""

    def __init__(self, books: Books, columns: int, inner: int) -> None:
        self._books = books
        self._columns = columns
        self.packed_bytes = 2 * columns * inner

    def __call__(self, x: Tensor) -> Tensor:
        self._books.shapes.add((x.shape[0], self._columns, x.shape[1]))
        return x.sum(1, keepdim=True).expand(-1, self._columns)


def test_everything_is_measured_once_and_bandwidth_again() -> None:
    books, notes = Books(), list[str]()
    first = measure(books.kernels(), sizes=SMALL)
    assert first.figures.keys() == CACHED | ALWAYS and first.cached == ()
    assert all(value > 0 for name, value in first.figures.items() if name != "thread_team")
    assert books.shapes == {(1, 64, 32), (8, 64, 32)}
    second = measure(books.kernels(), sizes=SMALL, note=notes.append)
    assert set(second.cached) == CACHED
    assert notes == ["memory bandwidth", *(f"the engine's {name} matrix-vector product" for name in ("bf16", "int8"))]
    assert {name: second.figures[name] for name in CACHED} == {name: first.figures[name] for name in CACHED}


def test_fresh_measures_everything() -> None:
    measure(Books().kernels(), sizes=SMALL)
    assert measure(Books().kernels(), sizes=SMALL, fresh=True).cached == ()


@pytest.mark.parametrize("change", ["kernels", "machine"])
def test_other_code_or_another_machine_has_other_figures(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    measure(Books().kernels(), sizes=SMALL)
    if change == "machine":
        monkeypatch.setattr("sgl.engine.base.machine._cpu_name", lambda root: "another")
    again = measure(Books().kernels("2" if change == "kernels" else "1"), sizes=SMALL)
    assert again.cached == ()


@pytest.mark.parametrize("content", ["", "[]", '{"matmul_fp32": "fast"}', "\xff"])
def test_a_broken_cache_is_none(own_cache_and_threads: Path, content: str) -> None:
    measure(Books().kernels(), sizes=SMALL)
    (file,) = (own_cache_and_threads / "sgl" / "bench").iterdir()
    file.write_bytes(content.encode("latin-1"))
    assert measure(Books().kernels(), sizes=SMALL).cached == ()


def test_figures_of_a_disturbed_run_are_shown_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sgl.bench.machine._switches", itertools.count(0, 10**6).__next__)
        ceilings = measure(Books().kernels(), sizes=SMALL)
    assert ceilings.disturbed and ceilings.figures.keys() == CACHED | ALWAYS
    assert measure(Books().kernels(), sizes=SMALL).cached == ()


def test_without_a_compiler_the_rest_is_measured() -> None:
    ceilings = measure(Books().kernels(missing="no C++ compiler was found"), sizes=SMALL)
    assert "gemv_bf16" not in ceilings.figures and "matmul_bf16" in ceilings.figures
    assert ceilings.to_dict()["note"] == "no C++ compiler was found"


def test_ctrl_c_keeps_what_was_measured_and_the_next_run_uses_it() -> None:
    books = Books()

    def interrupt() -> None:
        raise KeyboardInterrupt

    broken = Kernels("1", books.kernels().layers, interrupt, books.threads.append)
    ceilings = measure(broken, sizes=SMALL)
    assert ceilings.interrupted and ceilings.figures.keys() == (CACHED | ALWAYS) - {
        *("native_call", "thread_team", "python_call", "torch_op")
    }
    assert books.threads[-1] == machine.cores()  # not the one thread of the call that was broken off
    assert set(measure(books.kernels(), sizes=SMALL).cached) == PEAKS


def test_peaks_are_the_cached_arithmetic_alone() -> None:
    books = Books()
    measure(books.kernels(), sizes=SMALL)
    torch.set_num_threads(machine.cores())
    books.threads.clear()
    found = machine.peaks(books.kernels(), sizes=SMALL)
    assert set(found.figures) == set(found.cached) == PEAKS
    assert not books.threads  # an engine may be using them


def test_shares_are_of_what_binds() -> None:
    ceilings = machine.Ceilings({}, {"gemv_bf16_read": 20e9, "gemv_bf16": 15e9, "matmul_bf16": 400.0})
    assert ceilings.share("gemv_bf16") == 0.75
    assert ceilings.share("gemm_bf16") is None and ceilings.share("torch_op") is None
    assert ceilings.to_dict()["gemv_bf16_share"] == 0.75


def test_threads_double_up_to_all() -> None:
    assert machine._thread_counts(1) == [1]
    assert machine._thread_counts(6) == [1, 2, 4, 6]
    assert machine._thread_counts(8) == [1, 2, 4, 8]


def test_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, took_s = 0.0, iter([0.01, 0.05, 0.03, 0.09, 0.04, 0.04])

    def step() -> None:
        nonlocal now_s
        now_s += next(took_s)

    monkeypatch.setattr("sgl.bench.machine.time.perf_counter", lambda: now_s)
    assert machine._best(step, budget_s=0.2) == pytest.approx(0.03)


@pytest.fixture
def small_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.machine.measure", functools.partial(measure, sizes=SMALL))
    monkeypatch.setattr("sgl.cli.bench_machine.own_kernels", Books().kernels)


@pytest.mark.usefixtures("small_command")
def test_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "bench", "machine") == 0
    table = capsys.readouterr().out
    assert "memory: read" in table and "of torch's bf16" in table and "Python call" in table
    assert run(monkeypatch, "bench", "machine", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() >= CACHED | ALWAYS | {"machine", "sgl_version", "gemv_bf16_share", "gemm_bf16_share"}
    assert set(content["cached"]) == CACHED
    assert run(monkeypatch, "bench", "machine", "--fresh") == 0
    assert "cached" not in capsys.readouterr().out


@pytest.mark.skipif(bool(native.missing()), reason="no C++ compiler")
def test_the_kernels_are_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the compiled kernels of the usual cache
    kernels = bench_machine.own_kernels()
    x = torch.randn(3, 64).bfloat16()
    for format, make in kernels.layers.items():
        layer = machine._ones(format, make, 70, 64)
        tolerance = 0.05 if format == "bf16" else 0.5  # of 64 inputs rounded to 127 steps
        torch.testing.assert_close(
            layer(x).float(), x.float().sum(1, keepdim=True).expand(3, 70), atol=tolerance, rtol=0.02
        )
        assert layer.packed_bytes > 0
    kernels.call()
    kernels.set_threads(1)
    kernels.call()
