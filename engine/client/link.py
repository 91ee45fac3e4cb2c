"""The engine process's end of the connection to the front."""

from __future__ import annotations

import zmq

from sgl.engine.base.types import Inbound, Outbound
from sgl.engine.client.wire import Failed, Ready, decode_inbound, encode

_LINGER_MS = 5000


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
