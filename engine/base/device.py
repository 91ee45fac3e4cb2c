"""The one place outside GPU kernels that knows torch.cuda: streams, events, graphs and memory of a device.

On the CPU streams, events and graphs are null objects, so that callers write one code path. Torch is imported when a
device is opened, not with this module.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.staging import Staging

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

T = TypeVar("T")

CPU_ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
"""What CPU kernels are written for, each including the ones before it."""

_AVX512_BF16 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
_ISA_FLAGS = {
    "amx": (*_AVX512_BF16, "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    "avx512_bf16": _AVX512_BF16,
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx2": ("avx2", "fma"),
}


@dataclass(frozen=True, slots=True)
class Memory:
    total_bytes: int
    free_bytes: int


class Event(Protocol):
    """A point in a stream's work."""

    def record(self) -> None: ...

    def synchronize(self) -> None:
        """Blocks the host until the work before `record` is done."""
        ...

    def query(self) -> bool: ...

    def elapsed_s(self, later: Any) -> float:
        """Seconds between two points that have passed, of events that were made to tell."""
        ...


class Stream(Protocol):
    """A queue of device work; ``with stream.active():`` submits to it."""

    def active(self) -> AbstractContextManager[Any]: ...

    def wait(self, event: Any) -> None: ...


class Recorder(Protocol):
    """Captures a computation in segments, between which the host may do what cannot be captured."""

    def __enter__(self) -> Recorder: ...

    def __exit__(self, *failure: object) -> None: ...

    def begin(self) -> None:
        """What is submitted from here on is recorded, not run."""
        ...

    def end(self) -> Callable[[], None]:
        """Ends a segment; the result replays it on the same buffers."""
        ...


class Device(Protocol):
    """Where a model runs."""

    @property
    def kind(self) -> str: ...

    @property
    def is_async(self) -> bool:
        """Whether calls return before their work is done: then host work can hide behind it, and launches cost time
        that a capture saves."""
        ...

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def isa(self) -> str: ...

    def enter(self) -> None:
        """Makes it the calling thread's device: called first by every thread that computes on it."""
        ...

    def memory(self) -> Memory: ...

    def trim(self) -> None:
        """Returns freed memory to the system; worth its time after something large, like loading a model."""
        ...

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A large tensor of zeros, which on the CPU takes memory only as it is written."""
        ...

    def stream(self) -> Stream: ...

    def event(self, timed: bool = False) -> Event: ...

    def synchronize(self) -> None: ...

    def forbid_waits(self) -> AbstractContextManager[Any]:
        """Within, an operation that would wait for the device raises an error, as far as torch notices."""
        ...

    def upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """The values of arrays that nobody changes any more, in one copy, without waiting for what runs there."""
        ...

    def host_buffer(self, size_bytes: int) -> Tensor:
        """Host memory, uint8, that copies to the device read without a detour."""
        ...

    def to_host(self, tensor: Tensor) -> Tensor:
        """Starts a copy to host memory, never an alias; valid once an event recorded afterwards has passed."""
        ...

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        """Records ``run`` after a first run that warms up; the result replays it on the same buffers.

        What it returns lives in memory that all captures share: the next replay of any may overwrite what is not
        referenced any more. On the CPU it is ``run`` itself.
        """
        ...

    def recorder(self) -> Recorder:
        """For captures in segments; only where `is_async`."""
        ...

    def borrow(self, tensor: Tensor) -> Tensor:
        """The same numbers in the same place, without keeping the memory from being used for something else."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an allocation failed for want of memory, after which everything else still works."""
        ...


def open_device(name: str) -> Device:
    """Opens ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (the first GPU if there is one), for the calling thread at once.

    Raises:
        ConfigError: an unknown name, or a GPU that torch cannot see.
    """
    import torch

    kind, _, index = name.partition(":")
    env.keep_compiled()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        kind = "cuda" if gpus else "cpu"
    if kind == "cpu":
        _keep_freed_memory()
        return CpuDevice()
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N.", param="device")
    if int(index or 0) >= gpus:
        raise ConfigError(f"device {name!r} is not there: torch sees {gpus} CUDA devices; use cpu.", param="device")
    device = CudaDevice(int(index or 0))
    device.enter()
    return device


def _keep_freed_memory() -> None:
    """Makes glibc reuse freed blocks below 128 MiB instead of returning them to the system after every operation.

    A prefill allocates and frees megabytes per operation; faulting their pages in again made elementwise operations on
    512 tokens 8 times slower. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3
    _call_libc("mallopt", mmap_threshold, 128 << 20)
    _call_libc("mallopt", trim_threshold, 2**31 - 1)


def _call_libc(name: str, *args: int) -> None:
    """Calls a function that only glibc has."""
    with suppress(AttributeError):
        getattr(ctypes.CDLL(None), name)(*args)


def detect_isa() -> str:
    """The best of `CPU_ISAS` that this machine's processor has, or the one that SGL_KERNEL_ISA names instead.

    Raises:
        ConfigError: the processor does not have the one that is named.
    """
    best, asked = best_isa(_cpu_flags()), env.text("SGL_KERNEL_ISA")
    usable = CPU_ISAS[: CPU_ISAS.index(best) + 1]
    if asked and asked not in usable:
        raise ConfigError(
            f"SGL_KERNEL_ISA={asked} cannot be used on this processor; use {', '.join(usable)}.", param="SGL_KERNEL_ISA"
        )
    return asked or best


@functools.cache
def _cpu_flags() -> list[str]:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return flags if "amx_tile" in flags and _allow_tiles() else [flag for flag in flags if not flag.startswith("amx")]


def _allow_tiles() -> bool:
    """Asks Linux to save AMX's registers for this process; it refuses their use otherwise."""
    syscall, arch_prctl, request_permission, tile_data = ctypes.CDLL(None).syscall, 158, 0x1023, 18
    return bool(syscall(arch_prctl, request_permission, tile_data) == 0)


def best_isa(flags: list[str]) -> str:
    """The best of `CPU_ISAS` that a processor with these /proc/cpuinfo flags has."""
    return next((isa for isa, needed in _ISA_FLAGS.items() if set(needed) <= set(flags)), "generic")


class NullEvent:
    """CPU work is done when the call returns."""

    def __init__(self) -> None:
        self._at_s = 0.0

    def record(self) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_s(self, later: NullEvent) -> float:
        return later._at_s - self._at_s


class NullStream:
    def active(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self, event: Any) -> None:
        pass


@dataclass(frozen=True)
class CpuDevice:
    kind: str = "cpu"
    is_async: bool = False

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    @property
    def isa(self) -> str:
        return detect_isa()

    def enter(self) -> None:
        pass

    def memory(self) -> Memory:
        from sgl.engine.base.machine import memory  # which imports this module

        return Memory(*memory())

    def trim(self) -> None:
        _call_libc("malloc_trim", 0)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        import torch

        # Fresh pages from the system are zero and cost nothing until they are touched; torch.zeros touches them all.
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.zeros(tuple(shape), dtype=dtype)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(*shape)

    def stream(self) -> Stream:
        return NullStream()

    def event(self, timed: bool = False) -> Event:
        return NullEvent()

    def synchronize(self) -> None:
        pass

    def forbid_waits(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        import torch

        return [torch.from_numpy(array) for array in arrays]

    def host_buffer(self, size_bytes: int) -> Tensor:
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8)

    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        return run

    def recorder(self) -> Recorder:
        raise AssertionError("a CPU has nothing to capture: it computes while it is called")

    def borrow(self, tensor: Tensor) -> Tensor:
        return tensor

    def is_out_of_memory(self, error: BaseException) -> bool:
        # torch says so in words only; Linux rather ends the process
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _cuda() -> Any:
    import torch

    return torch.cuda


class _Bytes:
    """Device memory by its address, for torch to look at."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


class CudaStream:
    def __init__(self, index: int) -> None:
        self._stream = _cuda().Stream(index)

    def active(self) -> AbstractContextManager[Any]:
        stream: AbstractContextManager[Any] = _cuda().stream(self._stream)
        return stream

    def wait(self, event: CudaEvent) -> None:
        self._stream.wait_event(event._event)


class CudaEvent:
    def __init__(self, timed: bool) -> None:
        self._event = _cuda().Event(enable_timing=timed)
        # as they are: they run in every step
        self.record: Callable[[], None] = self._event.record
        self.synchronize: Callable[[], None] = self._event.synchronize
        self.query: Callable[[], bool] = self._event.query

    def elapsed_s(self, later: CudaEvent) -> float:
        return float(self._event.elapsed_time(later._event)) / 1000


class CudaRecorder:
    """Captures segments into graphs that share one pool of memory; they are replayed one after the other."""

    def __init__(self, index: int, pool: Any, stream: Any) -> None:
        self._index = index
        self._pool = pool
        self._stream = stream
        self._context: AbstractContextManager[Any] = nullcontext()
        self._graph: Any = None

    def __enter__(self) -> CudaRecorder:
        _cuda().synchronize(self._index)
        self._context = _cuda().stream(self._stream)
        self._context.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._graph is not None:  # something failed within a segment, and ending it fails, too
            with suppress(RuntimeError):
                self._graph.capture_end()
        self._graph = None
        self._context.__exit__(None, None, None)
        _cuda().synchronize(self._index)

    def begin(self) -> None:
        self._graph = _cuda().CUDAGraph()
        # other threads may allocate meanwhile: new weights are read on a thread of their own
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> Callable[[], None]:
        graph = self._graph
        graph.capture_end()
        self._graph = None
        replay: Callable[[], None] = graph.replay
        return replay


class CudaDevice:
    """A GPU. Work goes to the current stream; what is captured shares one pool of memory."""

    kind = "cuda"
    is_async = True

    def __init__(self, index: int = 0) -> None:
        self.index = index

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.index)

    @property
    def isa(self) -> str:
        """The compute capability, e.g. ``sm90``."""
        major, minor = _cuda().get_device_capability(self.index)
        return f"sm{major}{minor}"

    def enter(self) -> None:
        _cuda().set_device(self.index)  # Triton launches, and events are recorded, on the thread's own device

    def memory(self) -> Memory:
        free, total = _cuda().mem_get_info(self.index)
        return Memory(total, free)

    def trim(self) -> None:
        _cuda().empty_cache()

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        import torch

        return torch.zeros(*shape, dtype=dtype, device=self.torch_device)

    def stream(self) -> Stream:
        return CudaStream(self.index)

    def event(self, timed: bool = False) -> Event:
        return CudaEvent(timed)

    def synchronize(self) -> None:
        _cuda().synchronize(self.index)

    @contextmanager
    def forbid_waits(self) -> Iterator[None]:
        before = _cuda().get_sync_debug_mode()
        _cuda().set_sync_debug_mode("error")
        try:
            yield
        finally:
            _cuda().set_sync_debug_mode(before)

    @cached_property
    def _staging(self) -> Staging:
        return Staging(self.torch_device, self.host_buffer, self.event)

    def upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        return self._staging.send(arrays)

    def host_buffer(self, size_bytes: int) -> Tensor:
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def to_host(self, tensor: Tensor) -> Tensor:
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    @cached_property
    def _pool(self) -> tuple[Any, Any]:
        """What captures share: memory, and the stream that they are made on."""
        return _cuda().graph_pool_handle(), _cuda().Stream(self.index)

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        with self.recorder() as recorder:
            run()  # compiles and allocates what a capture must not
            recorder.begin()
            result = run()
            launch = recorder.end()

        def replay() -> T:
            launch()
            return result

        return replay

    def recorder(self) -> Recorder:
        return CudaRecorder(self.index, *self._pool)

    def borrow(self, tensor: Tensor) -> Tensor:
        import torch

        storage = tensor.untyped_storage()
        alias = torch.as_tensor(_Bytes(storage.data_ptr(), storage.nbytes()), device=self.torch_device)
        start = tensor.storage_offset() * tensor.dtype.itemsize
        flat = alias[start : storage.nbytes() - (storage.nbytes() - start) % tensor.dtype.itemsize].view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())

    def is_out_of_memory(self, error: BaseException) -> bool:
        import torch

        return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
