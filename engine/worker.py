"""Main program of an engine process: builds the loop that its standard input asks for and runs it until told to stop.

It lives and dies with the process that started it, and leaves SIGINT and SIGTERM to that one.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys

import msgspec
import zmq

from sgl.engine.base import log
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Inbound, Outbound
from sgl.engine.client.protocol import make_loop
from sgl.engine.client.wire import Failed, Ready, Setup, decode_inbound, encode, to_info

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LINGER_MS = 5000


def main() -> int:
    """Returns the exit status: 2 for an error of the user's, which the front reports."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    setup = msgspec.json.decode(sys.stdin.buffer.read(), type=Setup)
    if os.getppid() != setup.parent_pid:  # it ended before the kernel was told to watch it
        return 1
    config = EngineConfig.from_json(bytes(setup.config))
    log.configure(config.observe.log_level, config.observe.log_level_http or config.observe.log_level)
    link = Link(setup.inbound, setup.outbound)
    try:
        return _run(setup, config, link)
    finally:
        link.close()


def _run(setup: Setup, config: EngineConfig, link: Link) -> int:
    try:
        loop = make_loop(setup.loop, config, link, link)
    except SglError as error:
        link.send(Failed.from_error(error))
        return 2
    link.send(Ready(to_info(loop.info)))
    loop.run()
    return 0


class Link:
    """The engine's inbox and outbox: the two sockets to the front, used by the main thread only."""

    def __init__(self, inbound: str, outbound: str) -> None:
        self._context = zmq.Context()
        self._receiver = self._context.socket(zmq.PULL)
        self._sender = self._context.socket(zmq.PUSH)
        for socket in (self._receiver, self._sender):
            socket.set_hwm(0)  # sending never waits
            socket.linger = _LINGER_MS
        self._receiver.bind(inbound)
        self._sender.connect(outbound)
        self._receiver.recv()  # the front's greeting

    def drain(self, timeout_s: float) -> list[Inbound]:
        """All messages that are there; waits up to ``timeout_s`` for the first one."""
        messages: list[Inbound] = []
        wait_ms = int(timeout_s * 1000)
        while self._receiver.poll(wait_ms):
            messages.append(decode_inbound(self._receiver.recv()))
            wait_ms = 0
        return messages

    def send(self, message: Outbound | Ready | Failed) -> None:
        self._sender.send(encode(message))

    def close(self) -> None:
        """Waits until what was sent is out."""
        self._context.destroy()


if __name__ == "__main__":
    sys.exit(main())
