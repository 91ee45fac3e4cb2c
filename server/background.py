"""Does work beside the event loop, in order, on one thread; knows nothing of what it does."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 * 2**20
_CLOSE_TIMEOUT_S = 10.0

Work = Callable[[], None]


class Background:
    """A thread, and what waits for it, of which there is never too much.

    Args:
        name: of the thread.
        source: what the work comes from, for the log.
    """

    def __init__(self, name: str, source: str) -> None:
        self._source = source
        self._work: queue.SimpleQueue[tuple[int, Work] | None] = queue.SimpleQueue()
        self._num_put = self._num_done = 0  # bytes; one is written by who puts, the other by the thread
        self._has_lost = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, size: int, work: Work) -> bool:
        """Hands over work that holds so many bytes; false if too much waits already. Called from one thread."""
        if self._num_put - self._num_done + size > MAX_WAITING_BYTES:
            if not self._has_lost:
                logger.warning("%s: requests come faster than they are written; some are left out.", self._source)
            self._has_lost = True
            return False
        self._num_put += size
        self._work.put((size, work))
        return True

    def wait(self) -> None:
        """Until all is done that was put so far."""
        done = threading.Event()
        self._work.put((0, done.set))
        done.wait(_CLOSE_TIMEOUT_S)

    def close(self) -> None:
        """Does what waits, and ends."""
        self._work.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            size, work = item
            try:
                work()
            except Exception:
                logger.exception("%s: a request could not be written", self._source)
            self._num_done += size
