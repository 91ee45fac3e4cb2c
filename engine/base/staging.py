"""Host memory that a device copies from while the host goes on: a ring of blocks, each written again only when it has
been read. Knows no device; events and page-locked memory are given to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

_ALIGNMENT = 16  # bytes: no element is wider


class Passed(Protocol):
    """The part of an event that a ring needs; see `sgl.engine.base.device.Event`."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool: ...


class Staging:
    """Sends arrays to a device. All that one call sends travels in one copy.

    Args:
        allocate: page-locked host memory of so many bytes, uint8.
        event: a new event of the stream that copies.
        block_bytes: what is larger gets memory of its own, which is given back once it has been copied.
    """

    def __init__(
        self,
        device: torch.device,
        allocate: Callable[[int], Tensor],
        event: Callable[[], Passed],
        *,
        block_bytes: int = 1 << 20,
        num_blocks: int = 8,
    ) -> None:
        self._device = device
        self._allocate = allocate
        self._event = event
        self._block_bytes = block_bytes
        memory = allocate(block_bytes * num_blocks)
        self._blocks = [memory[start : start + block_bytes] for start in range(0, len(memory), block_bytes)]
        self._copied = [event() for _ in self._blocks]
        self._current = self._used = 0
        self._large: list[tuple[Tensor, Passed]] = []

    def send(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """The arrays' values on the device, in the order of its work. Waits only if the whole ring is on its way."""
        import numpy as np
        import torch

        flat = [np.ascontiguousarray(array) for array in arrays]
        ends = _ends([array.nbytes for array in flat])
        host = self._reserve(ends[-1])
        written = host.numpy()
        for array, end in zip(flat, ends, strict=True):
            written[end - array.nbytes : end] = array.reshape(-1).view(np.uint8)
        sent = torch.empty(len(host), dtype=torch.uint8, device=self._device)
        sent.copy_(host, non_blocking=True)
        if len(host) > self._block_bytes:
            self._large[-1][1].record()
        return [
            sent[end - array.nbytes : end].view(_torch_dtype(array)).view(array.shape)
            for array, end in zip(arrays, ends, strict=True)
        ]

    def _reserve(self, size_bytes: int) -> Tensor:
        if size_bytes > self._block_bytes:
            self._large = [(memory, copied) for memory, copied in self._large if not copied.query()]
            self._large.append((self._allocate(size_bytes), self._event()))
            return self._large[-1][0]
        if self._used + size_bytes > self._block_bytes:
            self._copied[self._current].record()
            self._current = (self._current + 1) % len(self._blocks)
            self._copied[self._current].synchronize()
            self._used = 0
        begin = self._used
        self._used += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._blocks[self._current][begin : begin + size_bytes]


def _ends(sizes: Sequence[int]) -> list[int]:
    """Where arrays of these sizes end that begin at aligned places, one behind the other."""
    ends: list[int] = []
    for size in sizes:
        begin = -(-ends[-1] // _ALIGNMENT) * _ALIGNMENT if ends else 0
        ends.append(begin + size)
    return ends


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    import numpy as np
    import torch

    return torch.from_numpy(np.empty(0, array.dtype)).dtype
