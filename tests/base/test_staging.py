"""The ring of host memory: what a device reads late is what was sent."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sgl.engine.base.staging import Staging
from tests.runtime.lazy import LazyDevice

DTYPES = (np.int64, np.int32, np.float32, np.uint8, np.float64)


@pytest.mark.parametrize("seed", range(4))
def test_arrays_arrive_however_late_they_are_read(seed: int) -> None:
    rng = random.Random(seed)
    device = LazyDevice(block_bytes=256)
    sent = []
    with device.active():
        for _ in range(60):
            shapes = [rng.choice([(), (0,), (3,), (2, 5), (40, 3)]) for _ in range(rng.randint(1, 4))]
            numbers = [np.array(np.random.default_rng(seed).random(shape) * 99) for shape in shapes]
            arrays = [array.astype(rng.choice(DTYPES)) for array in numbers]
            tensors = device.upload([array.T for array in arrays])
            sent += [(tensor, array.T.copy()) for tensor, array in zip(tensors, arrays, strict=True)]
            if rng.random() < 0.1:
                device.synchronize()
    device.synchronize()
    for tensor, array in sent:
        assert tensor.shape == array.shape and np.array_equal(tensor.numpy(), array)


def test_everything_travels_in_one_copy_and_nobody_waits() -> None:
    device = LazyDevice(block_bytes=4096)
    with device.active():
        device.upload([np.arange(3), np.ones((2, 2), np.float32), np.zeros(5, np.int32)])
        assert device.num_waiting == 1


class Event:
    """Counts who waits for it."""

    def __init__(self) -> None:
        self.num_waits, self.is_recorded = 0, False

    def record(self) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        self.num_waits += self.is_recorded

    def query(self) -> bool:
        return False


def test_a_block_is_waited_for_only_when_the_ring_has_come_round() -> None:
    events: list[Event] = []

    def event() -> Event:
        events.append(Event())
        return events[-1]

    def allocate(size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    staging = Staging(torch.device("cpu"), allocate, event, block_bytes=64, num_blocks=3)
    waits = []
    for _ in range(14):
        staging.send([np.arange(4)])  # two of them fill a block
        waits.append(sum(one.num_waits for one in events))
    assert waits == [0] * 6 + [1, 1, 2, 2, 3, 3, 4, 4]
