"""The HTTP machinery under the application: the listening socket, uvicorn with our limits, signals and draining."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sgl.engine.base.errors import ConfigError
from sgl.server.state import ServerState

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 64 * 1024
_HEADER_OVERHEAD_BYTES = 32  # also empty headers take memory
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that these do not close under a request
_ABORT_GRACE_S = 5.0  # what aborted answers have left to reach their clients
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130  # the shell's exit code for SIGINT


class BoundedHeaders(HttpToolsProtocol):
    """uvicorn's parser, which by itself would collect headers without end."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _HEADER_OVERHEAD_BYTES)
        super().on_header(name, value)

    def _count(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > _MAX_HEADER_BYTES:
            raise ValueError("too many header bytes")  # the parser answers 400 and closes


class HttpServer(uvicorn.Server):
    """uvicorn that drains: running answers may finish within a time, then they are aborted and end properly."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        drain_s = state.config.serve.drain_timeout_s
        config = uvicorn.Config(
            app,
            http=BoundedHeaders,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_s + _ABORT_GRACE_S),
        )
        super().__init__(config)
        self._state = state

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to `signals_end`: uvicorn would raise them again at its end and so change the exit code."""
        yield

    def end(self, number: int) -> None:
        """Acts on a signal: the first one drains, then SIGINT exits at once."""
        if self.should_exit and number == signal.SIGINT:
            os._exit(_INTERRUPTED)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._state.drain())
        await super().shutdown(sockets)
        draining.cancel()


@contextlib.contextmanager
def signals_end(server: HttpServer) -> Generator[None, None, None]:
    """Hands SIGINT and SIGTERM to the server; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, server.end, number)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections on ``host``; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use; stop what listens there, or choose another --port."
            raise ConfigError(message, param="--port") from None
        param = "--port" if error.errno == errno.EACCES else "--host"
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror}.", param=param) from None


def url_of(sock: socket.socket, host: str) -> str:
    """``http://host:port`` with the host as it was asked for."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}"
