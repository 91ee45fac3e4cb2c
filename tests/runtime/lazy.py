"""A GPU made of a CPU: what is submitted to it runs only when somebody waits, and captures replay operations alone.

Every operation of torch is queued; its result holds nonsense until the queue has run. So a missing wait shows as
nonsense, memory that is written again too early as somebody else's numbers, a number that a capture took from the
host as one that never changes, and whatever would make a real device wait as an error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

from sgl.engine.base.device import Memory
from sgl.engine.base.staging import Staging

T = TypeVar("T")
Work = Callable[[], None]

_WAITING = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
}
"""Operations whose result the host needs before it can go on."""

_ALLOCATING = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_strided,
    torch.ops.aten.empty_like,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}


class WaitError(Exception):
    """An operation that would wait for the device."""


class _Queue(TorchDispatchMode):
    """What has been submitted; ``num_done`` of it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[Work] = []
        self.num_done = 0
        self.sink: list[Work] | None = None
        self._lock = threading.RLock()

    def submit(self, work: Work) -> None:
        (self.submitted if self.sink is None else self.sink).append(work)

    @torch.inference_mode()
    def run(self, end: int) -> None:
        with self._lock, _disable_current_modes():
            while self.num_done < end:
                self.submitted[self.num_done]()
                self.submitted[self.num_done] = _nothing
                self.num_done += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _WAITING or _selects_by_booleans(func, args):
            raise WaitError(str(func))
        if func._can_decompose():  # of a name that may copy or not, like reshape
            with self:
                return func.decompose(*args, **kwargs)
        returns, arguments = func._schema.returns, func._schema.arguments
        if any(a.alias_info is not None and a.alias_info.is_write for a in arguments):
            self.submit(lambda: func(*args, **kwargs))
            return kwargs["out"] if "out" in kwargs else args[0] if returns else None
        if any(r.alias_info is not None for r in returns):
            return func(*args, **kwargs)  # a view: its numbers come when those of the whole do
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        shapes = tree_map_only(Tensor, _meta, (args, {**kwargs, "device": "meta"} if "device" in kwargs else kwargs))
        outs = tree_map_only(Tensor, _nonsense, func(*shapes[0], **shapes[1]))
        if func.overloadpacket in _ALLOCATING:
            return outs

        def work() -> None:
            results = func(*args, **kwargs)
            for out, result in zip(tree_flatten(outs)[0], tree_flatten(results)[0], strict=True):
                out.copy_(result)

        self.submit(work)
        return outs


class _Submitting(TorchDispatchMode):
    """Submits to a queue, also from threads beside the one that runs the steps."""

    def __init__(self, queue: _Queue) -> None:
        super().__init__()
        self._queue = queue

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._queue.__torch_dispatch__(func, types, args, kwargs)


class LazyStream:
    """All streams are one: whatever is submitted runs in that order, which every order of waits allows."""

    def __init__(self, queue: _Queue) -> None:
        self._queue = queue

    def active(self) -> _Submitting:
        return _Submitting(self._queue)

    def wait(self, event: Any) -> None:
        pass


class LazyEvent:
    def __init__(self, queue: _Queue) -> None:
        self._queue = queue
        self._end = 0

    def record(self) -> None:
        self._end = len(self._queue.submitted)

    def synchronize(self) -> None:
        self._queue.run(self._end)

    def query(self) -> bool:
        return self._queue.num_done >= self._end

    def elapsed_s(self, later: LazyEvent) -> float:
        return float(later._end - self._end)


class LazyRecorder:
    def __init__(self, queue: _Queue) -> None:
        self._queue = queue

    def __enter__(self) -> LazyRecorder:
        return self

    def __exit__(self, *failure: object) -> None:
        self._queue.sink = None

    def begin(self) -> None:
        assert self._queue.sink is None
        self._queue.sink = []

    def end(self) -> Work:
        segment, self._queue.sink = self._queue.sink, None
        assert segment is not None
        return lambda: self._queue.submitted.extend(segment)


class LazyDevice:
    """See `sgl.engine.base.device.Device`. Use it within ``with device.active():``.

    Args:
        block_bytes: of staging memory, small so that it is written again and again.
    """

    kind = "lazy"
    isa = "sm90"
    is_async = True
    torch_device = torch.device("cpu")

    def __init__(self, block_bytes: int = 2048) -> None:
        self._queue = _Queue()
        self._staging = Staging(self.torch_device, self.host_buffer, self.event, block_bytes=block_bytes, num_blocks=2)
        self.num_trims = 0

    def active(self) -> _Queue:
        return self._queue

    @property
    def num_waiting(self) -> int:
        """Operations that have not run yet."""
        return len(self._queue.submitted) - self._queue.num_done

    def enter(self) -> None:
        pass

    def memory(self) -> Memory:
        return Memory(1 << 40, 1 << 39)

    def trim(self) -> None:
        self.num_trims += 1

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def stream(self) -> LazyStream:
        return LazyStream(self._queue)

    def event(self, timed: bool = False) -> LazyEvent:
        return LazyEvent(self._queue)

    def forbid_waits(self) -> Any:
        return nullcontext()  # waiting is an error anyway

    def synchronize(self) -> None:
        self._queue.run(len(self._queue.submitted))

    def upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        return self._staging.send(arrays)

    def host_buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def to_host(self, tensor: Tensor) -> Tensor:
        return _nonsense(tensor).copy_(tensor)

    def capture(self, run: Callable[[], T]) -> Callable[[], T]:
        with self.recorder() as recorder:
            run()
            recorder.begin()
            result = run()
            launch = recorder.end()

        def replay() -> T:
            launch()
            return result

        return replay

    def recorder(self) -> LazyRecorder:
        return LazyRecorder(self._queue)

    def borrow(self, tensor: Tensor) -> Tensor:
        return tensor

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _nonsense(like: Tensor) -> Tensor:
    out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    if out.dtype == torch.bool:
        return out.fill_(True)
    return out.fill_(float("nan") if out.is_floating_point() else 99)


def _selects_by_booleans(func: Any, args: Any) -> bool:
    if func.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _nothing() -> None:
    pass
