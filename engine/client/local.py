"""An engine on a thread of this process: messages are handed over as they are."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import EngineDiedError
from sgl.engine.base.types import Inbound, Outbound, Shutdown
from sgl.engine.client.protocol import CLOSE_TIMEOUT_S, OnDied, OnMessage, make_loop
from sgl.engine.client.wire import LOOP, ModelInfo, to_info

logger = logging.getLogger(__name__)


class InProcessClient:
    """Runs the engine's loop, model loading included, on a daemon thread."""

    def __init__(self, config: EngineConfig, loop: str = LOOP) -> None:
        self._config = config
        self._loop = loop
        self._inbox = _Inbox()
        self._thread: threading.Thread | None = None

    def start(self, on_message: OnMessage, on_died: OnDied) -> ModelInfo:
        started: Future[ModelInfo] = Future()
        arguments = (started, on_message, on_died)
        self._thread = threading.Thread(target=self._run, args=arguments, name="sgl-engine", daemon=True)
        self._thread.start()
        return started.result()

    def send(self, message: Inbound) -> None:
        self._inbox.put(message)

    def close(self) -> None:
        self.send(Shutdown())
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self, started: Future[ModelInfo], on_message: OnMessage, on_died: OnDied) -> None:
        try:
            loop = make_loop(self._loop, self._config, self._inbox, _Outbox(on_message))
            started.set_result(to_info(loop.info))
        except BaseException as error:  # noqa: BLE001 - `start` raises it
            started.set_exception(error)
            return
        try:
            loop.run()
        except Exception as error:
            logger.exception("the engine stopped")
            on_died(EngineDiedError(f"The engine has stopped: {type(error).__name__}: {error}"))


class _Inbox:
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self.put = self._queue.put

    def drain(self, timeout_s: float) -> list[Inbound]:
        messages: list[Inbound] = []
        try:
            messages.append(self._queue.get(timeout=timeout_s) if timeout_s > 0 else self._queue.get_nowait())
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages


class _Outbox:
    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message

    def send(self, message: Outbound) -> None:
        self._on_message(message)
