"""A GPU that is not there: tensors of device ``cuda`` whose numbers lie on the host, and a torch.cuda for them.

`sgl.engine.base.device.CudaDevice` runs on it as it is, and so does all that stands on it; Triton's kernels are
interpreted, or only looked at. What differs from a GPU is time: everything has happened when a call returns (what comes
too early or too late is the business of `tests.runtime.lazy`). What is the same is what may be done: an operation
between host and device is an error, and so is one that waits for the device where waiting is forbidden or something is
being captured.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime import interpreter

from sgl.engine.base import machine
from sgl.engine.base.device import CudaDevice

aten = torch.ops.aten
Work = Callable[[], None]

CAPABILITY = (9, 0)
MEMORY_BYTES = 8 << 30
_CUDA = torch.device("cuda", 0)
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)

_WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.equal,
    aten.is_nonzero,
    aten.bincount,
}
"""Operations that bring something to the host before they return."""

_WHOLE = {aten.scaled_dot_product_attention, aten.lift_fresh, aten.detach_, aten.layer_norm, aten.rms_norm}
"""Operations that are made of others, which are not those of a GPU."""

_PINNING = {aten.pin_memory, aten._pin_memory}
_INDEXING = {aten.index, aten.index_put, aten.index_put_}


class WaitError(RuntimeError):
    """What torch's own detector raises, and what ends a capture."""


class PlaceError(RuntimeError):
    """An operation between host and device."""


class DeviceTensor(Tensor):
    """A tensor of the GPU. ``values`` are its numbers, on the host."""

    values: Tensor
    gpu: FakeCuda

    @staticmethod
    def __new__(cls, values: Tensor, gpu: FakeCuda) -> DeviceTensor:
        with torch.inference_mode(values.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=_CUDA,
            )
        made.values, made.gpu = values, gpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeviceTensor))
        return gpu.run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"cuda:{self.values!r}"

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def tolist(self) -> Any:
        self.gpu.wait("tolist")
        return self.values.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class FakeCuda(TorchDispatchMode):
    """What runs on the GPU, and what it forbids. Its attributes with names of torch.cuda take their place there."""

    def __init__(self, *, runs_kernels: bool) -> None:
        super().__init__()
        self.graph: FakeGraph | None = None  # that is being captured
        self.launched: Counter[str] = Counter()  # kernels of Triton by name
        self._runs_kernels = runs_kernels
        self._sync_mode = 0
        self._pinned: dict[int, Tensor] = {}
        self._threads = threading.local()

    # torch.cuda ------------------------------------------------------------------------------------------------------

    def set_device(self, index: int) -> None:
        """Comes first on every thread that computes there; what a thread makes is looked at only from then on."""
        assert index == 0
        if not getattr(self._threads, "is_inside", False):
            self._threads.is_inside = True
            torch._C._set_only_lift_cpu_tensors(True)  # or numbers from lists would get past a mode
            self.__enter__()

    def leave(self) -> None:
        """The end for the calling thread."""
        self._threads.is_inside = False
        torch._C._set_only_lift_cpu_tensors(False)
        self.__exit__(None, None, None)

    def get_sync_debug_mode(self) -> int:
        return self._sync_mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self._sync_mode = {"default": 0, "warn": 1, "error": 2}[mode] if isinstance(mode, str) else mode

    def synchronize(self, index: int | None = None) -> None:
        assert self.graph is None, "a capture does not survive a synchronisation"

    def names(self) -> dict[str, Any]:
        """What stands in torch.cuda."""
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_capability": lambda index=None: CAPABILITY,
            "mem_get_info": lambda index=None: (MEMORY_BYTES, MEMORY_BYTES),
            "empty_cache": lambda: None,
            "graph_pool_handle": object,
            "stream": lambda stream: nullcontext(),
            **{name: type(name, (cls,), {"gpu": self}) for name, cls in _CLASSES.items()},
            "_lazy_init": lambda: None,
            **{
                name: getattr(self, name)
                for name in ("set_device", "get_sync_debug_mode", "set_sync_debug_mode", "synchronize")
            },
        }

    # operations ------------------------------------------------------------------------------------------------------

    def wait(self, what: object) -> None:
        """Something waits for the device."""
        if self._sync_mode == 2:
            raise WaitError(f"called a synchronizing CUDA operation: {what}")
        if self.graph is not None:
            raise WaitError(f"operation not permitted when stream is capturing: {what}")

    def launch(self, kernel: str, grid: tuple[int, ...], args: tuple[Any, ...], run: Work) -> None:
        """A kernel of Triton."""
        for count, most in zip(grid, _MOST_BLOCKS, strict=False):
            assert 0 < count <= most, f"{kernel}: a grid of {grid}"
        for arg in args:
            if isinstance(arg, Tensor) and not isinstance(arg, DeviceTensor):
                raise PlaceError(f"{kernel}: Pointer argument cannot be accessed from Triton (cpu tensor?)")
        self.launched[kernel] += 1
        if self._runs_kernels:
            run()
            self._record(run)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        packet = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        asked = _asked_device(func, args, kwargs)
        if not far and (asked is None or asked.type != "cuda"):
            return self._on_host(func, args, kwargs)
        if packet in (aten.copy_, aten._to_copy):
            self._check_transfer(func, args, kwargs, asked)
        elif func._can_decompose() and packet not in _WHOLE:
            with self:  # some of what it is made of may wait
                return func.decompose(*args, **kwargs)
        else:
            self._check(func, packet, args, kwargs, tensors)
        _check_generator(kwargs, asked)
        return self._compute(func, args, kwargs, is_far=bool(far) if asked is None else asked.type == "cuda")

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        is_pinned = kwargs.get("pin_memory") or func.overloadpacket in _PINNING
        with _disable_current_modes():
            computed = aten.clone.default if func.overloadpacket in _PINNING else func
            out = computed(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})
        if is_pinned:
            self._pinned[out.untyped_storage().data_ptr()] = out  # kept, so that nothing else comes to lie there
        return out

    def _check_transfer(self, func: Any, args: Any, kwargs: Any, asked: torch.device | None) -> None:
        """Copies between host and device go on by themselves only if they may, to and from page-locked memory."""
        if func.overloadpacket is aten.copy_:
            target, source = args[0], args[1]
            host = next((tensor for tensor in (target, source) if not isinstance(tensor, DeviceTensor)), None)
            may = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        else:
            source, may = args[0], kwargs.get("non_blocking", False)
            to_far = asked is None or asked.type == "cuda"
            host = None if to_far and isinstance(source, DeviceTensor) else source
            if not to_far:
                self.wait(f"{func} to the host")
                return
        if host is not None and not (may and host.untyped_storage().data_ptr() in self._pinned):
            self.wait(f"{func} of {tuple(source.shape)}, {'pageable memory' if may else 'blocking'}")

    def _check(self, func: Any, packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        if packet in _WAITING or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
            self.wait(func)
        near = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if packet in _INDEXING:
            chosen = [index for index in args[1] if index is not None]
            if near or any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
                self.wait(f"{func} with numbers of the host, or of booleans")
            if not isinstance(args[0], DeviceTensor) or any(t.dim() for t in near if all(t is not c for c in chosen)):
                raise PlaceError(f"{func}: tensors of the host and of the device")
        elif any(tensor.dim() for tensor in near):
            raise PlaceError(f"{func}: tensors of the host and of the device")

    def _compute(self, func: Any, args: Any, kwargs: Any, *, is_far: bool) -> Any:
        near_args, near_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.values, (args, kwargs))
        near_args = tree_map_only(torch.device, lambda device: torch.device("cpu"), near_args)
        near_kwargs = {key: value for key, value in near_kwargs.items() if key != "pin_memory"}
        if near_kwargs.get("device") is not None:
            near_kwargs["device"] = torch.device("cpu")
        computed = _STAND_INS.get(func, func)
        if not self._runs_kernels and is_far:  # nobody will write there: what reads it needs places that there are
            computed = _EMPTY.get(func, computed)
        with _disable_current_modes():
            out = computed(*near_args, **near_kwargs)
        self._note(func, computed, near_args, near_kwargs, out)
        if not is_far:
            return out
        known = {id(t.values): t for t in tree_leaves((args, kwargs)) if isinstance(t, DeviceTensor)}

        def wrapped(tensor: Tensor) -> Tensor:
            return known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor, self)

        return tree_map_only(Tensor, wrapped, out)

    # captures --------------------------------------------------------------------------------------------------------

    def _note(self, func: Any, computed: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Records an operation, if anything is being captured."""
        if self.graph is None:
            return
        schema = func._schema
        if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
            self._record(lambda: computed(*args, **kwargs))
        elif not any(r.alias_info is not None for r in schema.returns):  # views change as what they look at does
            outs = tree_leaves(out)

            def again() -> None:
                for kept, new in zip(outs, tree_leaves(computed(*args, **kwargs)), strict=True):
                    if kept.numel():
                        kept.copy_(new)

            self._record(again)

    def _record(self, work: Work) -> None:
        if self.graph is not None:
            self.graph.work.append(work)


def _asked_device(func: Any, args: Any, kwargs: Any) -> torch.device | None:
    """Where an operation is told to put its result."""
    positional = (
        value for argument, value in zip(func._schema.arguments, args, strict=False) if argument.name == "device"
    )
    asked = kwargs.get("device") or next(positional, None)
    if asked is None:
        return None
    device = torch.device(asked)
    return _CUDA if device.type == "meta" else device  # of a GPU without a number the guard below tells its own name


def _check_generator(kwargs: Any, asked: torch.device | None) -> None:
    generator = kwargs.get("generator")
    if generator is not None and asked is not None and generator.device.type != asked.type:
        raise RuntimeError(f"Expected a '{asked.type}' device type for generator but found '{generator.device.type}'")


def _mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return a.to(dtype) @ b.to(dtype)


def _scaled_mm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """What cuBLAS asks for, and what it computes."""
    assert a.stride(1) == 1 and b.stride(0) == 1, "a by rows and b by columns"
    assert a.shape[1] % 16 == 0 and b.shape[1] % 16 == 0, "sizes are multiples of 16"
    assert scale_a.dtype == scale_b.dtype == torch.float32 and scale_result is None
    if scale_a.numel() > 1 or scale_b.numel() > 1:
        assert scale_a.shape == (len(a), 1) and scale_b.shape == (1, b.shape[1]), "a scale per row and per column"
        assert scale_a.is_contiguous() and scale_b.is_contiguous() and out_dtype == torch.bfloat16
    assert bias is None or bias.dtype == out_dtype
    product = (a.float() @ b.float()) * scale_a * scale_b
    return (product if bias is None else product + bias).to(out_dtype or a.dtype)


_STAND_INS: dict[Any, Callable[..., Any]] = {aten.mm.dtype: _mm, aten._scaled_mm.default: _scaled_mm}
"""Operations that torch has for GPUs alone."""


_EMPTY: dict[Any, Callable[..., Any]] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.new_empty.default: aten.new_zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
}
"""Memory as it is, and cleared."""


class FakeStream:
    def __init__(self, index: int) -> None:
        assert index == 0

    def wait_event(self, event: FakeEvent) -> None:
        assert event.is_recorded


class FakeEvent:
    gpu: FakeCuda

    def __init__(self, enable_timing: bool = False) -> None:
        self._is_timed = enable_timing
        self.is_recorded = False
        self._at_s = 0.0

    def record(self) -> None:
        self.is_recorded, self._at_s = True, time.perf_counter()

    def synchronize(self) -> None:
        assert self.gpu.graph is None, "nothing is waited for while something is captured"

    def query(self) -> bool:
        assert self.gpu.graph is None, "nothing is asked while something is captured"
        return True

    def elapsed_time(self, later: FakeEvent) -> float:
        assert self._is_timed and later._is_timed, "Both events must be created with argument 'enable_timing=True'."
        assert self.is_recorded and later.is_recorded, "Both events must be recorded"
        return 1e3 * (later._at_s - self._at_s)


class FakeGraph:
    gpu: FakeCuda

    def __init__(self) -> None:
        self.work: list[Work] = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert self.gpu.graph is None and not self.work
        self.gpu.graph = self

    def capture_end(self) -> None:
        assert self.gpu.graph is self
        self.gpu.graph = None

    @torch.inference_mode()
    def replay(self) -> None:
        assert self.gpu.graph is None, "a capture cannot be part of another"
        with _disable_current_modes():
            for work in self.work:
                work()


_CLASSES: dict[str, type] = {"Stream": FakeStream, "Event": FakeEvent, "CUDAGraph": FakeGraph}


@contextmanager
def installed(*, runs_kernels: bool) -> Iterator[FakeCuda]:
    """The GPU is there, for the calling thread and every thread that opens it.

    Args:
        runs_kernels: whether Triton's kernels run under its interpreter, which takes its time; else what they would
            write is zero.
    """
    gpu = FakeCuda(runs_kernels=runs_kernels)
    launch = interpreter.GridExecutor.__call__

    def launched(executor: Any, *args: Any, **kwargs: Any) -> None:
        near = tree_map_only(DeviceTensor, lambda tensor: tensor.values, args)

        def run() -> None:
            with _disable_current_modes():
                launch(executor, *near, **kwargs)

        grid = executor.grid(kwargs) if callable(executor.grid) else executor.grid
        gpu.launch(executor.fn.__name__, tuple(grid), args, run)

    with pytest.MonkeyPatch.context() as patch, _device_guard():
        for name, value in gpu.names().items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(interpreter.GridExecutor, "__call__", launched)
        patch.setattr(CudaDevice, "borrow", lambda device, tensor: tensor)  # addresses of the host are no GPU's
        patch.setattr(machine, "_gpu", lambda: ("no GPU at all", MEMORY_BYTES, MEMORY_BYTES))
        gpu.set_device(0)
        try:
            yield gpu
        finally:
            gpu.leave()


@contextmanager
def _device_guard() -> Iterator[None]:
    """A torch without CUDA does not know how to make a GPU the current one, which it does before it indexes: here it
    does what it does for tensors without numbers, nothing."""
    library = ctypes.CDLL(str(Path(torch.__path__[0], "lib", "libc10.so")))
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14
    before, guards[cuda] = guards[cuda], guards[meta]
    try:
        yield
    finally:
        guards[cuda] = before
