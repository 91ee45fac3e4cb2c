"""The engine's end of the grammar compiler's processes: starts them when they are needed, kills what takes too long."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Thread, Timer

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

MAX_PROCESSES = 3
"""Of one backend: beside two grammars that take all the time they may, a third is compiled when its process is up."""

_LOAD_TIMEOUT_S = 120.0
_PATIENCE_S = 0.1
"""How long a grammar waits for the one before it; most take less, and another process takes longer to start."""

_LOOK_S = 0.01
_IDLE_S = 60.0
"""How long a process beside the first is kept for nothing; one with xgrammar has 278 MB."""


class CompilerPool:
    """The processes of one backend: one, and others while that one is busy with something that takes long."""

    def __init__(self, make: Callable[[], CompilerProcess]) -> None:
        self._make = make
        self._changed = Condition()
        self._all: list[CompilerProcess] = []
        self._idle: dict[CompilerProcess, float] = {}  # since when; those that still load among them
        self._timer: Timer | None = None
        self._is_closed = False

    def start(self) -> None:
        """Has a first process load its library; does not wait for that.

        Raises:
            SglError: it cannot be started.
        """
        with self._changed:
            if not self._all and not self._is_closed:
                self._add()

    @contextmanager
    def lend(self) -> Iterator[CompilerProcess]:
        """The first process that is ready.

        Raises:
            SglError: none can be had, or the engine is shutting down.
        """
        process = self._take()
        try:
            yield process
        finally:
            with self._changed:
                if self._is_closed:
                    process.kill()
                self._idle[process] = time.monotonic()
                self._changed.notify()

    def close(self) -> None:
        """Ends all processes for good; whoever waits for one gets an error."""
        with self._changed:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
            for process in self._all:
                process.close()
            for process in self._idle:
                process.kill()
            self._changed.notify_all()

    def _take(self) -> CompilerProcess:
        begin_s = time.monotonic()
        with self._changed:
            while not self._is_closed:
                process = self._ready()
                if process is not None:
                    del self._idle[process]
                    return process
                is_short = not self._idle and len(self._all) < MAX_PROCESSES
                if not self._all or (is_short and time.monotonic() - begin_s > _PATIENCE_S):
                    try:
                        self._add()
                    except SglError:
                        if not self._all:
                            raise
                        begin_s = time.monotonic()  # those that there are will be free some time
                self._changed.wait(_LOOK_S)
        raise SglError("The engine is shutting down.", code="shutdown", status=503)

    def _ready(self) -> CompilerProcess | None:
        for process in reversed(list(self._idle)):  # the last one first, so that others can be given back
            try:
                if process.is_ready():
                    return process
            except SglError:
                if len(self._all) == 1:
                    raise
                self._end(process)
        return None

    def _add(self) -> None:
        process = self._make()
        process.start()
        self._all.append(process)
        self._idle[process] = time.monotonic()
        self._watch()

    def _end(self, process: CompilerProcess) -> None:
        process.kill()
        self._all.remove(process)
        del self._idle[process]

    def _watch(self) -> None:
        """Looks for processes that nobody needs, for as long as there are several."""
        if self._timer is None and len(self._all) > 1 and not self._is_closed:
            self._timer = Timer(_IDLE_S, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        with self._changed:
            now_s = time.monotonic()
            for process, since_s in list(self._idle.items()):
                if len(self._all) > 1 and now_s - since_s >= _IDLE_S:
                    self._end(process)
            self._timer = None
            self._watch()


class CompilerProcess:
    """One compiler with one backend; `close` may be called from any thread, the others from one at a time."""

    def __init__(self, backend: BackendName, vocabulary: Vocabulary, options: Options, limits: Limits) -> None:
        self._backend, self._vocabulary, self._options, self._limits = backend, vocabulary, options, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._is_loaded = False
        self._is_closed = False
        self._started_s = 0.0

    def start(self) -> None:
        """Starts the process if there is none, and lets it load its library; does not wait for that.

        Raises:
            SglError: it cannot be started.
        """
        if self._process is not None or self._is_closed:
            return
        environment = env.all_variables()
        root = str(Path(sgl.__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, environment.get("PYTHONPATH", "")) if part)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sgl.engine.grammar.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            message = f"The grammar compiler cannot be started: {error.strerror or error}."
            raise SglError(message, code="internal_error", status=500) from None
        self._started_s = time.monotonic()
        vocabulary = self._vocabulary
        load = Load(
            self._backend,
            vocabulary.pieces,
            dict(vocabulary.special),
            self._options.whitespace,
            self._limits.memory_bytes,
        )
        Thread(target=self._send, args=(load,), daemon=True).start()  # more than a pipe holds

    def is_ready(self) -> bool:
        """Whether its library is loaded; starts it again if it has ended.

        Raises:
            SglError: it cannot be started, or its library cannot be loaded.
        """
        if self._is_loaded and self._process is not None and self._process.poll() is not None:
            self.kill()  # it has died while nobody asked it anything; that is no grammar's fault
        self.start()
        if self._is_loaded:
            return True
        is_late = time.monotonic() - self._started_s > _LOAD_TIMEOUT_S
        if not (is_late or self._has_news()):
            return False
        reply = None if is_late else self._receive(self._limits.compile_s)
        if not isinstance(reply, Loaded):
            self.kill()
            raise _error_of(reply) or SglError("The grammar compiler does not start.", status=500)
        self._is_loaded = True
        return True

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
        while not self.is_ready():
            time.sleep(_LOOK_S)
        self._send(request)
        reply = self._receive(self._limits.compile_s)
        if isinstance(reply, Checked):
            return reply
        refused = _error_of(reply)
        if refused is not None:
            refused.param = refused.param or kind
            raise refused
        self.kill()
        with suppress(SglError):  # whoever comes next tries again
            self.start()  # its library loads while nobody waits for it
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
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, ValueError):  # it has died or was killed; then there will be no answer
                process.stdin.write(frame_of(message))
                process.stdin.flush()

    def _has_news(self) -> bool:
        """Whether an answer has begun to come, or the process has died."""
        process = self._process
        return process is None or process.stdout is None or bool(select.select([process.stdout], [], [], 0)[0])

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
