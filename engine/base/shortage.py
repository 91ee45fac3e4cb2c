"""Says what memory was for when there was too little of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sgl.engine.base.budget import size
from sgl.engine.base.device import Device
from sgl.engine.base.errors import OutOfMemoryError


@contextmanager
def memory_for(line: str, device: Device, advice: str) -> Iterator[None]:
    """Turns a failed allocation within into an error that names a line of the budget and what helps.

    Raises:
        OutOfMemoryError: in place of what the device says.
    """
    try:
        yield
    except Exception as error:
        if not device.is_out_of_memory(error):
            raise
        raise shortage(line, device, advice) from None


def shortage(line: str, device: Device, advice: str) -> OutOfMemoryError:
    """The error that `memory_for` raises."""
    memory = device.memory()
    free = f"{size(memory.free_bytes)} of {size(memory.total_bytes)} are free"
    return OutOfMemoryError(f"Too little memory for the budget's line '{line}': {free}; {advice}.")
