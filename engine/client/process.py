"""An engine in a process of its own, reached by zmq over Unix sockets in a directory that only this user may enter."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import msgspec
import zmq

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import EngineDiedError
from sgl.engine.base.interpreter import ENGINE_IMPORTS, Interpreter
from sgl.engine.base.types import Inbound, Shutdown
from sgl.engine.client.protocol import CLOSE_TIMEOUT_S, OnDied, OnMessage
from sgl.engine.client.wire import LOOP, Failed, ModelInfo, Ready, Setup, decode_outbound, encode

logger = logging.getLogger(__name__)


class ProcessClient:
    """Starts `sgl.engine.worker` and talks to it.

    One thread does everything that must not be interrupted: it starts the process unless there is one (the kernel kills
    it when the thread that started it ends), receives, and notices at once when the process ends.

    Args:
        interpreter: the process, if it has been started already.
    """

    def __init__(self, config: EngineConfig, loop: str = LOOP, interpreter: Interpreter | None = None) -> None:
        self._config = config
        self._loop = loop
        self._interpreter = interpreter
        self._lock = threading.Lock()  # of the sending socket
        self._sender: zmq.Socket[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Of the engine process."""
        return self._process.pid if self._process is not None else None

    def start(self, on_message: OnMessage, on_died: OnDied) -> ModelInfo:
        started: Future[ModelInfo] = Future()
        arguments = (started, on_message, on_died)
        self._thread = threading.Thread(target=self._run, args=arguments, name="sgl-engine-io", daemon=True)
        self._thread.start()
        try:
            return started.result()
        except BaseException:
            self._kill()
            raise

    def send(self, message: Inbound) -> None:
        with self._lock:
            if self._sender is not None:
                self._sender.send(encode(message))

    def close(self) -> None:
        self._closing = True
        self.send(Shutdown())
        if not self._has_ended():
            logger.warning("The engine process does not end; killing it.")
            self._kill()

    def _has_ended(self) -> bool:
        """Waits for it up to `CLOSE_TIMEOUT_S`."""
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        return self._thread is None or not self._thread.is_alive()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._has_ended()

    def _run(self, started: Future[ModelInfo], on_message: OnMessage, on_died: OnDied) -> None:
        directory = Path(tempfile.mkdtemp(prefix="sgl-"))  # mode 0700; not needed any more once both ends have met
        started.add_done_callback(lambda _: shutil.rmtree(directory, ignore_errors=True))
        inbound, outbound = (f"ipc://{directory / name}" for name in ("in", "out"))
        context = zmq.Context()
        try:
            sender, receiver = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            for socket in (sender, receiver):
                socket.set_hwm(0)  # sending never waits
            receiver.bind(outbound)
            sender.connect(inbound)
            sender.send(b"")  # the worker waits for it: when it is ready, it has been reached
            with self._lock:
                self._sender = sender
            self._process = self._spawn(inbound, outbound)
            self._receive(receiver, started, on_message)
            error = EngineDiedError(_death(self._process.wait()))
            if not started.done():
                started.set_exception(error)
            elif started.exception() is None and not self._closing:  # else its end is no news
                logger.error("%s", error.message)
                on_died(error)
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the engine cannot be heard any more")
            on_died(EngineDiedError())
        finally:
            with self._lock:
                self._sender = None
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            context.destroy(linger=0)

    def _spawn(self, inbound: str, outbound: str) -> subprocess.Popen[bytes]:
        """The engine process, with its orders."""
        interpreter = self._interpreter or Interpreter(ENGINE_IMPORTS if self._loop == LOOP else ())
        setup = Setup(
            config=msgspec.Raw(self._config.to_json()),
            inbound=inbound,
            outbound=outbound,
            parent_pid=os.getpid(),
            loop=self._loop,
        )
        interpreter.order(msgspec.json.encode(setup))
        return interpreter.process

    def _receive(self, receiver: zmq.Socket[bytes], started: Future[ModelInfo], on_message: OnMessage) -> None:
        """Until the process has ended and all that it sent has been read."""
        assert self._process is not None
        ended = os.pidfd_open(self._process.pid)
        try:
            poller = zmq.Poller()
            poller.register(receiver, zmq.POLLIN)
            poller.register(ended, zmq.POLLIN)
            timeout_ms = None
            while events := dict(poller.poll(timeout_ms)):
                if receiver in events:
                    self._take(receiver.recv(), started, on_message)
                elif ended in events:  # give the last messages a moment to arrive
                    poller.unregister(ended)
                    timeout_ms = 100
        finally:
            os.close(ended)

    def _take(self, data: bytes, started: Future[ModelInfo], on_message: OnMessage) -> None:
        match decode_outbound(data):
            case Ready(info):
                started.set_result(info)
            case Failed() as failed:
                started.set_exception(failed.to_error())
            case message:
                on_message(message)


def _death(code: int) -> str:
    """How the process ended, as a sentence."""
    if code < 0:
        return f"The engine process was killed by {signal.Signals(-code).name}; its log may have the reason."
    return f"The engine process has ended with exit code {code}; its log has the reason."
