"""The engine's end of the grammar compiler's process: starts it when it is needed, kills it when it takes too long."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import sgl
from sgl.engine.base import env
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar.backend import BackendName, Options
from sgl.engine.grammar.limits import Limits
from sgl.engine.grammar.protocol import (
    MAX_FRAME_BYTES,
    Check,
    Checked,
    Load,
    Loaded,
    Lower,
    Refused,
    Reply,
    Request,
    decode_reply,
    frame_of,
)
from sgl.engine.grammar.vocabulary import Vocabulary

_LOAD_TIMEOUT_S = 120.0


class CompilerProcess:
    """One compiler with one backend; `check` belongs to one thread, `close` may be called from any."""

    def __init__(self, backend: BackendName, vocabulary: Vocabulary, options: Options, limits: Limits) -> None:
        self._backend, self._vocabulary, self._options, self._limits = backend, vocabulary, options, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._is_loaded = False
        self._is_closed = False

    def start(self) -> None:
        """Starts the process if there is none, and lets it load its library; does not wait for that."""
        if self._process is not None or self._is_closed:
            return
        environment = env.all_variables()
        root = str(Path(sgl.__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, environment.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sgl.engine.grammar.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._is_loaded = False
        vocabulary = self._vocabulary
        self._send(
            Load(
                self._backend,
                vocabulary.pieces,
                dict(vocabulary.special),
                self._options.whitespace,
                self._limits.memory_bytes,
            )
        )

    def check(self, grammar: Grammar) -> Checked:
        """What to compile, which is known to be cheap.

        Raises:
            SglError: 400; the grammar is wrong or takes too long or too much memory.
        """
        return self._ask(Check(grammar, self._limits.mask_s), grammar.kind)

    def lower(self, grammar: Grammar) -> Grammar:
        """A JSON schema for the native backend.

        Raises:
            SglError: 400; it cannot be written so, or takes too long or too much memory.
        """
        return self._ask(Lower(grammar), grammar.kind).grammar

    def _ask(self, request: Check | Lower, kind: str) -> Checked:
        if not self._is_loaded:
            self.start()
            if not isinstance(reply := self._receive(_LOAD_TIMEOUT_S), Loaded):
                self.kill()
                raise _error_of(reply) or SglError("The grammar compiler does not start.", status=500)
            self._is_loaded = True
        self._send(request)
        reply = self._receive(self._limits.compile_s)
        if isinstance(reply, Checked):
            return reply
        refused = _error_of(reply)
        if refused is not None:
            refused.param = refused.param or kind
            raise refused
        self.kill()
        message = f"The {kind} takes more than {self._limits.compile_s:g} s or too much memory to compile."
        raise SglError(message, code="grammar_too_complex", param=kind)

    def kill(self) -> None:
        """Ends the process; the next grammar starts another."""
        process, self._process, self._is_loaded = self._process, None, False
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not sent is lost with the process
                    if pipe is not None:
                        pipe.close()

    def close(self) -> None:
        """Ends the process for good; whoever waits for it gets an error."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()

    def _send(self, message: Request) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it has died; then there will be no answer
                self._process.stdin.write(frame_of(message))
                self._process.stdin.flush()

    def _receive(self, timeout_s: float) -> Reply | None:
        """The answer; None if none comes in time or the process has died."""
        deadline_s = time.monotonic() + timeout_s
        head = self._read(4, deadline_s)
        size = int.from_bytes(head, "little") if len(head) == 4 else 0
        body = self._read(size, deadline_s) if 0 < size <= MAX_FRAME_BYTES else b""
        return decode_reply(body) if body and len(body) == size else None

    def _read(self, size: int, deadline_s: float) -> bytes:
        """As many bytes; fewer if they do not come in time."""
        if self._process is None or self._process.stdout is None:
            return b""
        fd, parts, missing = self._process.stdout.fileno(), [], size
        while missing:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                break
            part = os.read(fd, missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _error_of(reply: Reply | None) -> SglError | None:
    if not isinstance(reply, Refused):
        return None
    return SglError(reply.message, code=reply.code, param=reply.param, status=reply.status)
