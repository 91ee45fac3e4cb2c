"""What this machine can do, in a few seconds: memory, arithmetic, the engine's kernels against both, and call costs.

Measures the CPU: torch's products in float32, bfloat16 and int8 (oneDNN's, u8 x s8), and the engine's own in the
formats that it has; and where the machine has a GPU, that (`bench.machine_gpu`).
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sgl
from sgl.bench import machine_gpu, provenance
from sgl.bench.bandwidth import BandwidthProbe
from sgl.engine.base import env
from sgl.engine.base.machine import cores

if TYPE_CHECKING:
    from torch import Tensor

    from sgl.engine.base.device import Device

SHARES = {
    "gemv_bf16": "gemv_bf16_read",
    "gemv_int8": "gemv_int8_read",
    "gemv_int4": "gemv_int4_read",
    "gemm_bf16": "matmul_bf16",
    "gemm_int8": "matmul_int8",
    "gemm_int4": "matmul_int8",  # 4 bits are multiplied as 8
}
"""What the engine's kernels are held against."""

MOST_SWITCHES = 50.0
"""More involuntary context switches per second than that, and the figures are not kept for other runs."""


class Layer(Protocol):
    """x [M, K] in bf16 -> [M, N], by a weight that was packed before."""

    @property
    def packed_bytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...


Make = Callable[..., Layer]


@dataclass(frozen=True)
class Kernels:
    """The engine's own kernels, given by those who may import them.

    Args:
        build: names the code: other code, other figures.
        layers: by weight format, what makes a layer: bf16 of its weight [N, K]; int8 and int4 of values in uint8
            [N, K], scales [N, groups], bits and inputs per group.
        call: a native call on nothing: what every call costs.
        set_threads: how many threads the calls use.
        missing: why there are none; then the others are not used.
    """

    build: str
    layers: Mapping[str, Make]
    call: Callable[[], object]
    set_threads: Callable[[int], None]
    missing: str = ""


@dataclass(frozen=True)
class Sizes:
    """How much is read and multiplied: large against any cache, small against the seconds there are."""

    probe_bytes: int = 1 << 29
    matmul: int = 2048
    gemv: tuple[int, int] = (24576, 4096)  # N, K: 48 MiB of int4
    gemm: tuple[int, int, int] = (512, 4096, 4096)  # M, N, K
    budget_s: float = 0.1  # for one figure


@dataclass
class Ceilings:
    """Figures by name: bytes per second, operations per second and seconds."""

    machine: dict[str, str | int | float]
    figures: dict[str, float] = field(default_factory=dict)
    read_by_threads: dict[int, float] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    note: str = ""
    switches_per_s: float = 0.0
    interrupted: bool = False

    @property
    def disturbed(self) -> bool:
        """Whether other programs took the cores away again and again, so that the figures are too low."""
        return self.switches_per_s > MOST_SWITCHES

    def share(self, name: str) -> float | None:
        """How much of its ceiling a kernel of the engine reaches; it may be more than all where it beats torch."""
        of = self.figures.get(SHARES.get(name, ""))
        return self.figures[name] / of if of and name in self.figures else None

    def to_dict(self) -> dict[str, Any]:
        shares = {f"{name}_share": share for name in SHARES if (share := self.share(name)) is not None}
        return {
            "sgl_version": sgl.__version__,
            "versions": provenance.versions(),
            "machine": self.machine,
            **self.figures,
            **shares,
            "read_bandwidth_by_threads": self.read_by_threads,
            "cached": list(self.cached),
            "note": self.note,
            "disturbed": self.disturbed,
            "interrupted": self.interrupted,
        }


def measure(
    kernels: Kernels,
    *,
    gpu: Device | None = None,
    fresh: bool = False,
    note: Callable[[str], None] = lambda _: None,
    sizes: Sizes = Sizes(),
) -> Ceilings:
    """Measures what the cache does not have for this machine; bandwidth always. Ctrl-C keeps what there is.

    All cores of this process are used, as the engine uses them.

    Args:
        kernels: the engine's.
        gpu: measured too.
        fresh: measure everything.
        note: told what is being measured.
    """
    kernels.set_threads(cores())
    with _threads(cores()):
        groups = list(_groups(kernels))
        for title, names, measure_gpu in machine_gpu.groups(gpu) if gpu is not None else ():
            groups.append(_Group(title, names, partial(_ignore_sizes, measure_gpu)))
        return _measure(kernels, groups, fresh, note, sizes, bandwidth=True)


def use_threads(count: int) -> None:
    """As many as the engine has that is measured from outside."""
    import torch

    torch.set_num_threads(count)


def peaks(kernels: Kernels, note: Callable[[str], None] = lambda _: None, sizes: Sizes = Sizes()) -> Ceilings:
    """The rates of arithmetic only, with as many threads as torch has now; from the cache if they are there."""
    groups = [group for group in _groups(kernels) if group.is_peak]
    return _measure(kernels, groups, False, note, sizes, bandwidth=False)


def known(kernels: Kernels, sizes: Sizes = Sizes()) -> Ceilings:
    """What has been measured before, if anything; measures nothing."""
    with _threads(cores()):
        ceilings = Ceilings(provenance.describe(), note=kernels.missing)
        ceilings.figures = _read(_cache_file(ceilings.machine, kernels, sizes))
    ceilings.cached = tuple(ceilings.figures)
    return ceilings


def _measure(
    kernels: Kernels,
    groups: Sequence[_Group],
    fresh: bool,
    note: Callable[[str], None],
    sizes: Sizes,
    *,
    bandwidth: bool,
) -> Ceilings:
    ceilings = Ceilings(provenance.describe(), note=kernels.missing)
    file = _cache_file(ceilings.machine, kernels, sizes)
    known = _read(file)
    begin_s, switches = time.perf_counter(), _switches()
    try:
        if bandwidth:
            note("memory bandwidth")
            _measure_bandwidth(ceilings, sizes)
        for group in groups:
            if group.keeps and not fresh and set(group.names) <= set(known):
                ceilings.figures |= {name: known[name] for name in group.names}
                ceilings.cached += group.names
            else:
                note(group.title)
                values = group.measure(sizes)
                ceilings.figures |= dict(zip(group.names, values, strict=True))
    except KeyboardInterrupt:
        ceilings.interrupted = True
    ceilings.switches_per_s = (_switches() - switches) / (time.perf_counter() - begin_s)
    if not ceilings.disturbed:
        _write(file, {**known, **ceilings.figures})
    return ceilings


@dataclass(frozen=True)
class _Group:
    """Figures that are measured together.

    Args:
        keeps: whether they need no second measurement on this machine.
        is_peak: whether they are rates of arithmetic.
    """

    title: str
    names: tuple[str, ...]
    measure: Callable[[Sizes], Sequence[float]]
    keeps: bool = True
    is_peak: bool = False


def _groups(kernels: Kernels) -> Iterator[_Group]:
    import torch

    for name, make in kernels.layers.items():
        # Bound by the bandwidth, which may change by the second, so reading takes turns with it.
        title = f"the engine's {name} matrix-vector product"
        yield _Group(title, (f"gemv_{name}", f"gemv_{name}_read"), partial(_gemv, name, make), keeps=False)
    yield _Group("matrix products", ("matmul_fp32", "matmul_bf16"), _matmul, is_peak=True)
    if "onednn" in torch.backends.quantized.supported_engines:
        yield _Group("int8 matrix products", ("matmul_int8",), _matmul_int8, is_peak=True)
    for name, make in kernels.layers.items():
        title = f"the engine's {name} matrix product"
        yield _Group(title, (f"gemm_{name}",), partial(_gemm, name, make), is_peak=True)
    if not kernels.missing:
        yield _Group("native calls", ("native_call", "thread_team"), lambda sizes: _native_calls(kernels, sizes))
    yield _Group("Python and torch calls", ("python_call", "torch_op"), _calls)


def _ignore_sizes(run: Callable[[], list[float]], sizes: Sizes) -> list[float]:
    return run()


def _measure_bandwidth(ceilings: Ceilings, sizes: Sizes) -> None:
    import torch

    probe = BandwidthProbe(sizes.probe_bytes)
    for count in _thread_counts(torch.get_num_threads()):
        with _threads(count):
            ceilings.read_by_threads[count] = probe.size_bytes / _best(probe.read, sizes.budget_s)
    ceilings.figures["read_bandwidth"] = max(ceilings.read_by_threads.values())
    # A copy reads and writes: both count.
    source = torch.ones(sizes.probe_bytes // 8)
    target = torch.ones_like(source)
    ceilings.figures["copy_bandwidth"] = 2 * source.nbytes / _best(lambda: target.copy_(source), sizes.budget_s)


def _matmul(sizes: Sizes) -> list[float]:
    import torch

    n, rates = sizes.matmul, []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
        rates.append(2 * n**3 / _best(partial(torch.matmul, a, b), sizes.budget_s))
    return rates


def _matmul_int8(sizes: Sizes) -> list[float]:
    """oneDNN's, with activations in u8: its products of signed activations are hundreds of times slower."""
    import torch

    n, ops = sizes.matmul, torch.ops.onednn
    weight = ops.qlinear_prepack(torch.ones(n, n, dtype=torch.int8), None)
    x = torch.full((n, n), 129, dtype=torch.uint8)
    scales, zeros = torch.ones(n), torch.zeros(n, dtype=torch.int64)
    behind: tuple[Any, ...] = (1.0, 0, torch.bfloat16, "none", [], "")

    def run() -> object:
        return ops.qlinear_pointwise(x, 1.0, 128, weight, scales, zeros, None, *behind)

    return [2 * n**3 / _best(run, sizes.budget_s)]


def _ones(name: str, make: Make, columns: int, inner: int) -> Layer:
    """A layer whose weights are all 1."""
    import torch

    if name == "bf16":
        return make(torch.ones(columns, inner, dtype=torch.bfloat16))
    bits, group = {"int8": (8, inner), "int4": (4, 32)}[name]
    values = torch.full((columns, inner), (1 << bits - 1) + 1, dtype=torch.uint8)
    return make(values, torch.ones(columns, -(-inner // group)), bits, group)


def _gemv(name: str, make: Make, sizes: Sizes) -> list[float]:
    """The rates of the product and of plain reading, in turns."""
    import torch

    columns, inner = sizes.gemv
    layer, x = _ones(name, make, columns, inner), torch.ones(1, inner, dtype=torch.bfloat16)
    probe = BandwidthProbe(sizes.probe_bytes // 4)
    best_s = [math.inf, math.inf]

    def both() -> None:
        for index, run in enumerate((lambda: layer(x), probe.read)):
            start_s = time.perf_counter()
            run()
            best_s[index] = min(best_s[index], time.perf_counter() - start_s)

    _best(both, sizes.budget_s)
    return [layer.packed_bytes / best_s[0], probe.size_bytes / best_s[1]]


def _gemm(name: str, make: Make, sizes: Sizes) -> list[float]:
    import torch

    rows, columns, inner = sizes.gemm
    layer, x = _ones(name, make, columns, inner), torch.ones(rows, inner, dtype=torch.bfloat16)
    return [2 * rows * columns * inner / _best(lambda: layer(x), sizes.budget_s)]


def _native_calls(kernels: Kernels, sizes: Sizes) -> list[float]:
    """A call on one thread, and what starting and joining the whole team adds to it."""
    import torch

    count = torch.get_num_threads()
    try:
        kernels.set_threads(1)
        alone = _best(kernels.call, sizes.budget_s, calls=100)
    finally:
        kernels.set_threads(count)
    return [alone, max(0.0, _best(kernels.call, sizes.budget_s, calls=20) - alone) if count > 1 else 0.0]


def _calls(sizes: Sizes) -> list[float]:
    import torch

    one = torch.ones(1)
    return [_best(_nothing, sizes.budget_s, calls=1000), _best(lambda: one.add(one), sizes.budget_s, calls=1000)]


def _nothing() -> None:
    pass


def _best(run: Callable[[], object], budget_s: float, calls: int = 1) -> float:
    """Seconds of a call in the fastest of several rounds, after one that warms up and is not counted."""

    def round_s() -> float:
        start_s = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start_s

    round_s()
    begin_s, best_s = time.perf_counter(), round_s()
    while time.perf_counter() - begin_s < budget_s:
        best_s = min(best_s, round_s())
    return best_s / calls


def _switches() -> int:
    """How often a thread of this process had to leave its core to somebody else."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cache_file(machine: Mapping[str, Any], kernels: Kernels, sizes: Sizes) -> Path:
    """Where the figures of this machine, this code and this number of threads are kept."""
    import torch

    facts = [machine["fingerprint"], sgl.__version__, torch.__version__, torch.get_num_threads(), kernels.build]
    return env.cache_dir() / "bench" / f"machine-{provenance.name_of([*facts, repr(sizes)])}.json"


def _read(file: Path) -> dict[str, float]:
    """What was measured before; nothing if the file is not there or not ours."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: float(value) for name, value in content.items() if isinstance(value, int | float)}


def _write(file: Path, figures: Mapping[str, float]) -> None:
    """Keeps figures for the next time; a cache that cannot be written is none."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(figures), encoding="utf-8")
        scratch.replace(file)  # a reader never sees half of it
    except OSError:
        return
