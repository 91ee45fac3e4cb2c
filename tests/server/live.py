"""Servers on real sockets: on a thread of the test, or in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgl.engine.api import AsyncEngine
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError
from sgl.server.app import build_app
from sgl.server.http import HttpServer, listen
from sgl.server.state import ServerState
from tests.server.fake import make_config, make_engine

ROOT = Path(__file__).resolve().parents[2]


class Live:
    """A server over an engine, on a thread."""

    def __init__(self, engine: AsyncEngine, config: EngineConfig) -> None:
        self._sock = listen("127.0.0.1", 0)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = engine
        self.state = ServerState(config)
        self.state.start(engine)
        self._server = HttpServer(build_app(self.state), self.state)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()

    async def _serve(self) -> None:
        await self._server.serve(sockets=[self._sock])
        await self.state.close()

    @property
    def has_connections(self) -> bool:
        """Whether a client is connected, or has just left."""
        return bool(self._server.server_state.connections)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


class LiveEcho(Live):
    """A server over the made-up model; ``client`` are the books of its engine."""

    def __init__(self, config: EngineConfig) -> None:
        engine, self.client = make_engine(config)
        super().__init__(engine, config)


@contextmanager
def live(hold: bool = False, **options: Any) -> Iterator[LiveEcho]:
    """A server over the made-up model; with ``hold`` no answer gets more than its first token."""
    server = LiveEcho(make_config(**{"serve_drain_timeout_s": 1.0, **options}))
    if hold:
        server.client.limit = lambda: 1
    try:
        yield server
    finally:
        server.close()


class Process:
    """A program whose stderr is collected in ``log``."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self.popen.kill()
        self.wait()
        assert self.popen.stderr is not None
        self.popen.stderr.close()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line.rstrip("\n"))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match of a log line."""
        found: re.Match[str] = until(lambda: next(filter(None, (re.search(pattern, x) for x in list(self.log))), None))
        return found

    def wait(self) -> int:
        """The exit code."""
        code = self.popen.wait(60)
        self._reader.join(60)
        return code


@contextmanager
def process(**options: Any) -> Iterator[Process]:
    """``tests.server.echo_server`` with options."""
    with contextlib.closing(Process("-m", "tests.server.echo_server", json.dumps(options))) as server:
        yield server


def until(probe: Callable[[], Any]) -> Any:
    """What the probe returns once that is true."""
    deadline_s = time.monotonic() + 60
    while not (found := probe()):
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.01)
    return found


def free_port() -> int:
    """A port that nobody else is given by chance: below those that the system hands out."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with contextlib.suppress(ConfigError), listen("127.0.0.1", port):
            return port


def post(port: int, path: str, body: Any, headers: str = "", receive_bytes: int | None = None) -> socket.socket:
    """A connection over which a request was sent; nothing of the answer has been read."""
    data = json.dumps(body).encode()
    sock = socket.socket()
    sock.settimeout(60)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    sock.sendall(head.encode() + data)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes or resets the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)
