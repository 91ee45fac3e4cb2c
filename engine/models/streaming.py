"""Brings tensors from memory maps to a device while later ones are read; knows neither files nor layers.

Several threads copy pieces of tensors into page-locked buffers, which is when the pages of a file are read; from there
the device fetches them by itself.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sgl.engine.base.device import Device, Event

Item = TypeVar("Item")

_NUM_THREADS, _NUM_BUFFERS = 4, 8
_PIECE_BYTES = 16 << 20
_AHEAD_BYTES = 512 << 20
"""Of tensors that are on their way while the next one is put in its place."""


def streamed(
    items: Iterable[tuple[str, Tensor | Item]], device: Device, piece_bytes: int = _PIECE_BYTES
) -> Iterator[tuple[str, Tensor | Item]]:
    """The items in their order, tensors on the device; what is no tensor, and all on a CPU, stays as it is."""
    if not device.is_async:
        yield from items
        return
    ahead: deque[tuple[str, _Sent | Item]] = deque()
    ahead_bytes = 0
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="weights") as threads:
        sender = _Sender(device, threads, piece_bytes)
        for name, item in items:
            ahead.append((name, sender.send(item) if isinstance(item, Tensor) else item))
            ahead_bytes += _size(ahead[-1][1])
            while ahead_bytes > _AHEAD_BYTES:
                ahead_bytes -= _size(ahead[0][1])
                yield _arrived(*ahead.popleft())
        while ahead:
            yield _arrived(*ahead.popleft())


@dataclass(frozen=True)
class _Sent:
    """A tensor of the device, and the copies that fill it."""

    target: Tensor
    pieces: list[Future[Event]]


class _Sender:
    def __init__(self, device: Device, threads: ThreadPoolExecutor, piece_bytes: int) -> None:
        self._device = device
        self._threads = threads
        self._piece_bytes = piece_bytes
        self._stream = device.stream()
        self._buffers: queue.SimpleQueue[tuple[Tensor, Event]] = queue.SimpleQueue()
        for _ in range(_NUM_BUFFERS):
            self._buffers.put((device.host_buffer(piece_bytes), device.event()))

    def send(self, tensor: Tensor) -> _Sent:
        source = _bytes(tensor.contiguous())
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device.torch_device)
        allocated = self._device.event()
        allocated.record()
        self._stream.wait(allocated)  # whoever had this memory before is done with it
        places = _bytes(target)
        parts = (slice(start, start + self._piece_bytes) for start in range(0, len(source), self._piece_bytes))
        return _Sent(target, [self._threads.submit(self._copy, source[part], places[part]) for part in parts])

    @torch.inference_mode()  # which is a thread's own: what is made within cannot be written outside
    def _copy(self, source: Tensor, target: Tensor) -> Event:
        buffer, is_read = self._buffers.get()
        try:
            is_read.synchronize()
            part = buffer[: len(source)]
            part.copy_(source)
            copied = self._device.event()
            with self._stream.active():
                target.copy_(part, non_blocking=True)
                is_read.record()
                copied.record()
        finally:
            self._buffers.put((buffer, is_read))
        return copied


def _arrived(name: str, item: _Sent | Item) -> tuple[str, Tensor | Item]:
    if not isinstance(item, _Sent):
        return name, item
    for piece in item.pieces:
        piece.result().synchronize()
    return name, item.target


def _size(item: object) -> int:
    return item.target.nbytes if isinstance(item, _Sent) else 0


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
