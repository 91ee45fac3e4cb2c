"""Has kernels compiled while weights are read: a small model of the same kind runs a few steps beside the loader."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sgl.engine.base.device import Device
from sgl.engine.runtime.executor import TorchExecutor

logger = logging.getLogger(__name__)


class Rehearsal:
    """What a device compiles on first use it compiles for ``make()``, on a thread of its own.

    Nothing depends on whether it succeeds: what is not compiled by then is compiled in the engine's first steps.

    Args:
        make: an executor with the kernels and widths of the real one, but few layers and little memory.
    """

    def __init__(self, make: Callable[[], TorchExecutor], device: Device) -> None:
        self._make = make
        self._device = device
        self._thread = threading.Thread(target=self._run, name="rehearsal", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the end and gives its memory back."""
        self._thread.join()
        self._device.trim()

    def _run(self) -> None:
        try:
            self._device.enter()
            executor = self._make()
            executor.warm_up()
            executor.close()
        except Exception:  # the engine itself will say what does not work
            logger.debug("the rehearsal failed", exc_info=True)
